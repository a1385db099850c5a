"""What ``benchmarks.gptq_peers`` measured, in ratios and as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

OURS = "ours"
DEFAULT = "minmax static"
FIGURES = {"kl": "KL", "perplexity": "perplexity", "cpu_seconds": "processor seconds"}

Rows = dict[str, dict[str, Any]]


def mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.mean(math.log(value) for value in values))


def by_arm(rows: Rows, figure: str) -> dict[str, dict[str, dict[int, float]]]:
    """``model/bits`` -> arm -> draw -> ``figure``, of the rows that have it."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for key, row in rows.items():
        model, bits, arm, draw = key.split("/")
        if figure in row:
            found.setdefault(f"{model}/{bits}", {}).setdefault(arm, {})[int(draw)] = row[figure]
    return found


def against(ours: dict[int, float], other: dict[int, float]) -> dict[str, Any] | None:
    """Ours over the other's, draw by draw, and the geometric mean of these ratios; None where no draw is shared."""
    ratios = [ours[draw] / other[draw] for draw in sorted(ours) if draw in other]
    if not ratios:
        return None
    return {"ratio": round(mean(ratios), 4), "draws": [round(ratio, 4) for ratio in ratios]}


def summary(rows: Rows) -> dict[str, Any]:
    """For every model and number of bits: each figure of every arm, ours over each, and over the peer's best."""
    found: dict[str, Any] = {}
    for figure in FIGURES:
        for name, arms in by_arm(rows, figure).items():
            means = {arm: mean(list(draws.values())) for arm, draws in arms.items()}
            told: dict[str, Any] = {"means": {arm: float(f"{value:.5g}") for arm, value in means.items()}}
            over = {arm: against(arms.get(OURS, {}), draws) for arm, draws in arms.items() if arm != OURS}
            told["ours_over"] = {arm: ratio for arm, ratio in over.items() if ratio is not None}
            if told["ours_over"]:
                told["best"] = min(told["ours_over"], key=means.__getitem__)
            found.setdefault(name, {})[figure] = told
    return found


def table(content: dict[str, Any]) -> str:
    """Markdown: a line a model, number of bits and figure."""
    heads = ("model, bits", "", "ours", "peer's default", "peer's best", "ours / default", "ours / best", "each draw")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, figures in content.items():
        for figure, label in FIGURES.items():
            told = figures.get(figure, {})
            if "best" not in told:
                continue
            best, means, over = told["best"], told["means"], told["ours_over"]
            plain = over.get(DEFAULT, {}).get("ratio", "")
            draws = " ".join(str(ratio) for ratio in over[best]["draws"])
            cells = (name, label, means[OURS], means.get(DEFAULT, ""), f"{means[best]} ({best})", plain)
            lines.append("| " + " | ".join(str(cell) for cell in (*cells, over[best]["ratio"], draws)) + " |")
    return "\n".join(lines)
