from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel

from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError, UsageError
from compresskit.export import export_onnx
from compresskit.methods.quantization import _bitsandbytes
from compresskit.methods.quantization.bnb_nf4 import BnbNf4
from compresskit.methods.quantization.llm_int8 import LlmInt8
from compresskit.methods.quantization.nf4 import Nf4
from compresskit.nn.bitsandbytes_layers import BitsandbytesNf4Linear, MixedInt8Linear
from compresskit.pipeline.ledger import size_of
from tests import models
from tests.test_recurrent_models import build

METHODS: list[Compressor] = [BnbNf4(), BnbNf4(block=128, double=False), LlmInt8()]


def package() -> Any:
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes isn't installed")


def applied(method: Compressor, original: PreTrainedModel) -> tuple[PreTrainedModel, Context]:
    model, context = copy.deepcopy(original), Context()
    method.apply(model, resolve(model, method).sites, context)
    return model, context


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_refused_with_a_hint_where_the_package_is_absent(method: Compressor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bitsandbytes, "installed", lambda: False)
    with pytest.raises(RecipeError, match=r"pip install 'compresskit\[bitsandbytes\]'") as caught:
        resolve(models.tiny("bert"), method)
    assert caught.value.code == "CK-T014"
    monkeypatch.setattr(_bitsandbytes, "kernels", lambda: None)
    with pytest.raises(UsageError) as again:
        _bitsandbytes.library()
    assert again.value.code == "CK-U041"


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_sizes_are_predicted_and_the_checkpoint_reloads(method: Compressor, name: str, tmp_path: Path) -> None:
    package()
    original = models.tiny(name)
    sites = resolve(original, method).sites
    model, context = applied(method, original)
    assert size_of(original).bytes - size_of(model).bytes == method.predicted_saving(original, sites)
    assert size_of(model).parameters == size_of(original).parameters
    assert set(context.details) == {site.path for site in sites}
    again = load_model(save_checkpoint(model, tmp_path / "out", source=None).path)
    batch = models.inputs(name, padded=True)
    assert torch.equal(models.output(again, batch), models.output(model, batch))
    assert 0 < models.max_difference(model, original, batch) < float(models.output(original, batch).abs().max())


def test_int8_codes_are_those_of_the_library() -> None:
    """``Linear8bitLt`` keeps the codes that it makes when it is moved to a device; scales are its absmax / 127."""
    library = package()
    plain = nn.Linear(40, 12)
    theirs = library.nn.Linear8bitLt(40, 12, has_fp16_weights=False, threshold=6.0)
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to("cpu")
    model = models.tiny("bert")
    path = "encoder.layer.0.output.dense"
    weight = view(model, path).weight
    weight[:12, :40] = plain.weight.detach()
    weight[12:] = weight[:12, 40:] = 0
    method = LlmInt8(targets=(path,))
    method.apply(model, resolve(model, method).sites, Context())
    layer = model.get_submodule(path)
    assert isinstance(layer, MixedInt8Linear)
    assert torch.equal(layer.weight_codes[:12, :40], theirs.weight.data)
    torch.testing.assert_close(layer.weight_scale[:12], theirs.state_dict()["SCB"] / 127)
    assert not layer.weight_codes[12:].any()
    assert bool(layer.weight_scale.isfinite().all())


def test_a_weight_beyond_float16_is_no_overflow() -> None:
    package()
    model = models.tiny("bert")
    path = "encoder.layer.0.output.dense"
    view(model, path).weight[0, 0] = 1e6
    before = view(model, path).weight.clone()
    method = LlmInt8(targets=(path,))
    method.apply(model, resolve(model, method).sites, Context())
    after = model.get_submodule(path).weight + 0  # type: ignore[operator]
    assert float((after - before).abs()[1:].max()) < 0.05
    assert float(after[0, 0]) == pytest.approx(1e6, rel=1e-2)


def test_as_good_as_our_own_nf4() -> None:
    package()
    original = models.tiny("bert")
    errors = [
        sum(detail["relative_error"] for detail in applied(method, original)[1].details.values())
        for method in (BnbNf4(), Nf4())
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("method", [BnbNf4(), LlmInt8()], ids=str)
def test_gates_of_an_lstm(method: Compressor) -> None:
    package()
    model, _ = applied(method, build("lstm"))
    kind = BitsandbytesNf4Linear if isinstance(method, BnbNf4) else MixedInt8Linear
    assert {type(layer) for layer in model.rnn.matrices} == {kind}


@pytest.mark.parametrize(
    ("method", "profile"), [(BnbNf4(), "fast"), (LlmInt8(), "fast"), (LlmInt8(), "portable")], ids=str
)
def test_exported(method: Compressor, profile: Any, tmp_path: Path) -> None:
    package()
    model, _ = applied(method, models.tiny("bert", num_hidden_layers=1))
    report = export_onnx(model, tmp_path / "model.onnx", profile=profile)
    assert report.held_to == ("token" if isinstance(method, LlmInt8) and profile == "fast" else "float")
    assert report.bytes < size_of(model).bytes + 60_000


@pytest.mark.parametrize(
    ("cls", "options"), [(BnbNf4, {"block": 48}), (LlmInt8, {"threshold": -1}), (LlmInt8, {"bits": 8})]
)
def test_wrong_options(cls: type[Compressor], options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate(options)
