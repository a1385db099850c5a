"""Tables and plots of ``results/midtd.json``: ``python -m benchmarks.midtd_report --plots docs/plots``.

Differences are paired by seed, with a 95 % interval of Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.midtd_arms import ARMS

RESULTS = Path(__file__).parent / "results" / "midtd.json"
NAMES = {
    "teacher": "teacher",
    "ce_again": "trained again on labels",
    "label_smoothing": "label smoothing 0.1",
    "kd": "plain KD, T = 1",
    "kd_tuned": "plain KD, tuned T",
    "mitf": "MiTF alone",
    "dtr": "DTR alone",
    "paper": "MiDTD, paper",
    "default": "MiDTD, default",
}


def values(cell: dict[str, Any], arm: str, metric: str) -> dict[int, float]:
    """Seed -> the metric on test."""
    return {
        int(key.rpartition("/")[2]): run["test"][metric]
        for key, run in sorted(cell["runs"].items())
        if key.rpartition("/")[0] == arm
    }


def paired(cell: dict[str, Any], arm: str, other: str, metric: str = "auc") -> tuple[list[float], str]:
    """Differences of the seeds that both have, and their mean with its interval as text."""
    first, second = values(cell, arm, metric), values(cell, other, metric)
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return [], "–"
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return differences, f"{mean:+.2f}"
    half = float(stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5)
    return differences, f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def table(name: str, cell: dict[str, Any]) -> str:
    """One row an arm."""
    tuned = cell["tuning"]
    lines = [
        f"### {name}",
        "",
        f"On development data: plain KD {tuned.get('kd')}; band {tuned.get('band', 'none, the teacher is sharp')}.",
        "",
        "| arm | seeds | AUC | less plain KD | micro-F1 | NLL | NLL, fitted T | calibration error | entropy p5–p95 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in (arm for arm in NAMES if arm in ARMS):
        found = {
            metric: list(values(cell, arm, metric).values())
            for metric in ("auc", "micro_f1", "nll", "nll_fitted", "calibration_error")
        }
        if not found["auc"]:
            continue
        sd = f" ± {np.std(found['auc'], ddof=1):.2f}" if len(found["auc"]) > 1 else ""
        spreads = [
            (run["target_entropy"]["p5"], run["target_entropy"]["p95"])
            for key, run in cell["runs"].items()
            if key.rpartition("/")[0] == arm and "target_entropy" in run
        ]
        entropy = "–" if not spreads else "{:.2f}–{:.2f}".format(*np.mean(spreads, 0))
        means = {metric: float(np.mean(numbers)) for metric, numbers in found.items()}
        less = "–" if arm == "kd" else paired(cell, arm, "kd")[1]
        lines.append(
            f"| {NAMES[arm]} | {len(found['auc'])} | {means['auc']:.2f}{sd} | {less} | {means['micro_f1']:.2f} |"
            f" {means['nll']:.3f} | {means['nll_fitted']:.3f} | {means['calibration_error']:.3f} | {entropy} |"
        )
    lines += ["", *demands(cell)]
    return "\n".join(lines)


def demands(cell: dict[str, Any]) -> list[str]:
    """Default against the arms that it was asked to beat, seed by seed."""
    lines = []
    for other in ("teacher", "ce_again", "kd", "kd_tuned"):
        differences, text = paired(cell, "default", other)
        each = ", ".join(f"{value:+.2f}" for value in differences)
        lines.append(f"- default less {NAMES[other]}: {text}; by seed {each or '–'}")
    return lines


def plot(name: str, cell: dict[str, Any], folder: Path) -> None:
    """Precision over recall of the arms, and the spread of the targets' entropy, as one SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for arm in ("teacher", "ce_again", "kd", "kd_tuned", "paper", "default"):
        curves = [run["curve"] for key, run in cell["runs"].items() if key.rpartition("/")[0] == arm]
        if not curves:
            continue
        grid = np.linspace(0.02, 1, 50)
        mean = np.mean([np.interp(grid, *np.array(curve).T) for curve in curves], 0)
        left.plot(grid, mean, label=NAMES[arm], linewidth=2 if arm == "default" else 1)
    left.set(xlabel="recall", ylabel="precision", title="(bag, relation), mean of the seeds")
    left.legend(fontsize=8)
    shown = ["kd", "kd_tuned", "mitf", "dtr", "paper", "default"]
    for place, arm in enumerate(shown):
        spreads = [
            [run["target_entropy"][mark] for mark in ("p5", "p50", "p95")]
            for key, run in cell["runs"].items()
            if key.rpartition("/")[0] == arm and "target_entropy" in run
        ]
        if spreads:
            low, middle, high = np.mean(spreads, 0)
            right.plot([low, high], [place, place], color="tab:blue", linewidth=4, solid_capstyle="butt")
            right.plot([middle], [place], "o", color="black")
    right.set_yticks(range(len(shown)), [NAMES[arm] for arm in shown])
    right.set(xlabel="entropy of the targets, nats: p5, median, p95", xlim=(0, None))
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"midtd-{name.replace('/', '-')}.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, help="folder for the SVG files")
    given = parser.parse_args()
    content = json.loads(given.results.read_text(encoding="utf-8"))
    for name, cell in content["cells"].items():
        print(table(name, cell), end="\n\n")
        if given.plots is not None:
            plot(name, cell, given.plots)


if __name__ == "__main__":
    main()
