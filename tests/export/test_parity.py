"""What counts as equal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.errors import ExportError
from compresskit.export.graph import Task
from compresskit.export.parity import TEXT, measure, require, rule
from compresskit.nn.int8 import Int8Linear


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": 2 * x}


class Runtime:
    """Stands for a session: the right result, changed by ``change``."""

    def __init__(self, change: object) -> None:
        self.change = change

    def run(self, names: list[str], feed: dict[str, object]) -> list[object]:
        return [self.change(2 * feed["x"])]  # type: ignore[operator]


BATCH = {"x": torch.randn(2, 5, 8), "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])}
INPUTS = {"x": ("batch", "sequence", None), "attention_mask": ("batch", "sequence")}
TASK = Task("t", Doubled(), BATCH, INPUTS, {"y": ("batch", "sequence", None)})


def test_only_real_tokens_count() -> None:
    def spoil(y: object) -> object:
        y[1, 2:] = 7  # type: ignore[index]
        return y

    (case,) = measure(TASK, {"b": BATCH}, Runtime(spoil))
    assert case.difference == 0
    assert case.cosine_min == pytest.approx(1)


@pytest.mark.parametrize(
    ("noise", "held_to", "passes"),
    [
        (1e-6, "float", True),
        (1e-2, "float", False),
        (1e-2, "token", True),
        (0.3, "token", False),
        (0.3, "tensor", False),
    ],
)
def test_thresholds(noise: float, held_to: str, passes: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(2, 5, 8, generator=generator).numpy() * noise
    cases = measure(TASK, {TEXT: BATCH}, Runtime(lambda y: y + error))
    if passes:
        require(cases, held_to)
        return
    with pytest.raises(ExportError) as caught:
        require(cases, held_to)
    assert caught.value.code == "CK-X007"
    assert "batch text" in caught.value.where


def test_random_tokens_are_held_to_the_floor() -> None:
    error = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).numpy()
    require(measure(TASK, {"random": BATCH}, Runtime(lambda y: y + 0.2 * error)), "token")
    with pytest.raises(ExportError) as caught:
        require(measure(TASK, {"random": BATCH}, Runtime(lambda y: y + 1.5 * error)), "tensor")
    assert caught.value.code == "CK-X007"


def test_nan_and_shape_are_refused() -> None:
    for change in (lambda y: y * float("nan"), lambda y: y[:, :3]):
        with pytest.raises(ExportError) as caught:
            measure(TASK, {"b": BATCH}, Runtime(change))
        assert caught.value.code == "CK-X006"


def test_rule_follows_the_coarsest_layer() -> None:
    layers = nn.ModuleList([Int8Linear(4, 4, True, "token")])
    assert rule(layers, "fast") == "token"  # type: ignore[arg-type]
    layers.append(Int8Linear(4, 4, True, "tensor"))
    assert rule(layers, "fast") == "tensor"  # type: ignore[arg-type]
    assert rule(layers, "portable") == "float"  # type: ignore[arg-type]
    assert rule(nn.Linear(2, 2), "fast") == "float"  # type: ignore[arg-type]
