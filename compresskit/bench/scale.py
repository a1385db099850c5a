"""How cost grows with length and batch: the exponent b of cost = a · length^b, fitted in logarithms.

Full attention tends to 2 for long texts, a window or linear attention to 1, and the matrices hold both near 1 for short
ones; so the exponent is also given for the longest step alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compresskit.bench.analysis import headline_statistic, slices_of
from compresskit.bench.blocks import Block
from compresskit.bench.record import Cell, Record
from compresskit.errors import UsageError
from compresskit.numerics.statistics import RESAMPLES, interval, midmean

Axis = Literal["length", "batch"]


@dataclass(frozen=True)
class Point:
    """Median time of a call at one length or batch, with its interval, ms."""

    at: int
    milliseconds: float
    ci: tuple[float, float]


@dataclass(frozen=True)
class Fit:
    """One arm along one axis, the other held at ``fixed``.

    Args:
        exponent: over all points; ``last`` between the two largest.
    """

    arm: str
    axis: Axis
    fixed: int
    points: list[Point]
    exponent: float
    ci: tuple[float, float]
    last: float
    last_ci: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def fits(record: Record, *, resamples: int = RESAMPLES // 5, seed: int = 0) -> list[Fit]:
    """A fit for each arm, axis and value of the other axis that has at least two points.

    Intervals: blocks are drawn again, and the line is fitted to each draw.

    Raises:
        UsageError: CK-B032, no axis has two points.
    """
    found = []
    arms = [arm.name for arm in record.arms if arm.role != "control" and not arm.error]
    for axis in ("length", "batch"):
        for cells in _lines(record.plan.cells, axis):
            for arm in arms:
                found.append(_fit(record.blocks, cells, arm, axis, resamples, seed, record.plan.level))
    if not found:
        raise UsageError("CK-B032", "an exponent needs two lengths or two batches", fix="such as --length 64,128,256")
    return found


def _lines(cells: Sequence[Cell], axis: Axis) -> list[list[Cell]]:
    """Cells that differ in ``axis`` alone, in its order."""
    other = "batch" if axis == "length" else "length"
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.scenario, cell.threads, getattr(cell, other)), []).append(cell)
    ordered = (sorted(group, key=lambda cell: getattr(cell, axis)) for group in groups.values())
    return [group for group in ordered if len(group) > 1]


def _fit(
    blocks: Sequence[Block], cells: Sequence[Cell], arm: str, axis: Axis, resamples: int, seed: int, level: float
) -> Fit:
    generator = np.random.default_rng(seed)
    at = np.array([getattr(cell, axis) for cell in cells], dtype=np.float64)
    centres, draws = [], []
    for cell in cells:
        logs = _block_logs(blocks, cell, arm)
        centres.append(float(midmean(logs)))
        draws.append(midmean(logs[generator.integers(0, len(logs), size=(resamples, len(logs)))]))
    centre, drawn = np.array(centres), np.stack(draws)
    slopes, slope = _slope(at, drawn), float(_slope(at, centre[:, None])[0])
    last, last_draws = float(_slope(at[-2:], centre[-2:, None])[0]), _slope(at[-2:], drawn[-2:])
    points = []
    for number, size in enumerate(at):
        low, high = np.exp(interval(drawn[number], level))
        points.append(Point(int(size), float(np.exp(centre[number])), (float(low), float(high))))
    fixed = cells[0].batch if axis == "length" else cells[0].length
    return Fit(arm, axis, fixed, points, slope, interval(slopes, level), last, interval(last_draws, level))


def _block_logs(blocks: Sequence[Block], cell: Cell, arm: str) -> np.ndarray:
    statistic = headline_statistic(cell)[1]
    parts = [slices_of([block], cell.id, arm) for block in blocks if block.cell == cell.id]
    return np.log([statistic(part) for part in parts if part])


def _slope(at: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Least-squares slopes of columns of ``logs`` (points, draws) over log(at)."""
    x = np.log(at) - np.log(at).mean()
    slopes: np.ndarray = (x[:, None] * (logs - logs.mean(0))).sum(0) / (x**2).sum()
    return slopes


def check_plot(path: Path) -> None:
    """Whether a plot can be written there, before anything is measured for it.

    Raises:
        UsageError: CK-B033.
    """
    if path.suffix not in (".svg", ".png"):
        raise UsageError("CK-B033", f"a plot can't be written as {path.suffix or 'that'}", fix="give .svg or .png")


def plot(found: Sequence[Fit], path: Path) -> None:
    """Both axes logarithmic, a line an arm; SVG or PNG by the name of ``path``.

    Raises:
        UsageError: CK-B033, another kind of file.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((fit.axis, fit.fixed) for fit in found))
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained")
    (FigureCanvasSVG if path.suffix == ".svg" else FigureCanvasAgg)(figure)
    for number, (axis, fixed) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        for fit in (fit for fit in found if (fit.axis, fit.fixed) == (axis, fixed)):
            x = [point.at for point in fit.points]
            y = [point.milliseconds for point in fit.points]
            errors = [[point.milliseconds - point.ci[0] for point in fit.points]]
            errors.append([point.ci[1] - point.milliseconds for point in fit.points])
            label = f"{fit.arm}: {fit.exponent:.2f}, last step {fit.last:.2f}".replace("$", r"\$")
            axes.errorbar(x, y, yerr=errors, marker="o", capsize=3, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        sizes = sorted({point.at for fit in found if fit.axis == axis for point in fit.points})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("tokens of a row" if axis == "length" else "rows of a batch")
        axes.set_ylabel("median call (ms)")
        axes.set_title(f"batch {fixed}" if axis == "length" else f"{fixed} tokens")
        axes.grid(alpha=0.3, which="both")
        axes.legend(title="exponent", fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
