"""The quick comparison tells a slower model from an equal one."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.bench import quick
from compresskit.errors import UsageError
from tests import models


def test_intervals_hold_the_true_ratio() -> None:
    base = [10.0 + 0.01 * index for index in range(20)]
    low, middle, high = quick._interval(base, [2 * value for value in base])
    assert low <= 0.5 <= high
    assert middle == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((1.2, 1.4), "FASTER"), ((0.5, 0.6), "SLOWER"), ((0.99, 1.01), "SAME"), ((0.99, 1.2), "AMBIGUOUS")],
)
def test_verdicts(interval: tuple[float, float], verdict: str) -> None:
    assert quick._verdict(interval, (0.97, 1.03)) == verdict


def test_a_deeper_model_is_slower(tmp_path: Path) -> None:
    small = models.write_checkpoint(models.tiny("bert", num_hidden_layers=1), tmp_path / "small")
    large = models.write_checkpoint(models.tiny("bert", num_hidden_layers=12), tmp_path / "large")
    rows = quick.compare([str(small), str(large)], length=64, rounds=7)
    assert [row.verdict for row in rows] == ["BASELINE", "SLOWER"]
    assert rows[1].ratio < 0.5
    assert rows[0].disk_bytes < rows[1].disk_bytes


def test_what_can_not_be_compared(tmp_path: Path) -> None:
    for arguments, code in (([], "CK-B001"), ([str(tmp_path / "absent.onnx")], "CK-B002")):
        with pytest.raises(UsageError) as caught:
            quick.compare(arguments)
        assert caught.value.code == code
