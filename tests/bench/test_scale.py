"""Exponents of costs that are known, and the plot."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.bench import scale
from compresskit.bench.record import Cell
from compresskit.errors import UsageError
from tests.bench.fake import blocks
from tests.bench.records import make


def cells(*sizes: int, batch: int = 1) -> list[Cell]:
    return [
        Cell(id=f"encode/b{batch}/t{size}/th1", scenario="encode", batch=batch, length=size, threads=1)
        for size in sizes
    ]


def record(exponent: float, sizes: tuple[int, ...] = (32, 64, 128)):  # type: ignore[no-untyped-def]
    base = make({"m": 1.0})
    chosen = cells(*sizes)
    made = [
        block
        for cell in chosen
        for block in blocks({"m": (cell.length / 32) ** exponent}, cell=cell, processes=2, count=10)
    ]
    return base.model_copy(update={"plan": base.plan.model_copy(update={"cells": chosen}), "blocks": made})


@pytest.mark.parametrize("exponent", [1.0, 1.4, 2.0])
def test_the_exponent_is_found(exponent: float) -> None:
    (fit,) = scale.fits(record(exponent))
    assert fit.exponent == pytest.approx(exponent, abs=0.03)
    assert fit.ci[0] < exponent < fit.ci[1]
    assert fit.last == pytest.approx(exponent, abs=0.06)
    assert [point.at for point in fit.points] == [32, 64, 128]
    assert fit.points[0].milliseconds == pytest.approx(10.0, rel=0.02)
    assert fit.axis == "length"
    assert fit.fixed == 1


def test_both_axes() -> None:
    base = record(1.0, (16, 32))
    more = cells(16, 32, batch=4)
    made = [*base.blocks, *(block for cell in more for block in blocks({"m": 3.0}, cell=cell, processes=1))]
    plan = base.plan.model_copy(update={"cells": [*base.plan.cells, *more]})
    found = scale.fits(base.model_copy(update={"plan": plan, "blocks": made}))
    assert sorted((fit.axis, fit.fixed) for fit in found) == [
        ("batch", 16),
        ("batch", 32),
        ("length", 1),
        ("length", 4),
    ]


def test_one_point_is_no_line() -> None:
    with pytest.raises(UsageError) as caught:
        scale.fits(record(1.0, (64,)))
    assert caught.value.code == "CK-B032"


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_plot(tmp_path: Path, suffix: str) -> None:
    found = scale.fits(record(1.5))
    target = tmp_path / f"plot{suffix}"
    scale.plot([found[0], scale.Fit(**{**vars(found[0]), "arm": "<b>$x$"})], target)
    content = target.read_bytes()
    assert len(content) > 5000
    if suffix == ".svg":
        assert b"<svg" in content
        assert b"<b>" not in content
    with pytest.raises(UsageError) as caught:
        scale.plot(found, tmp_path / "plot.exe")
    assert caught.value.code == "CK-B033"
