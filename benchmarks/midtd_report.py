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
    return differences, with_interval(differences, 3 if metric.startswith("nll") else 2)


def with_interval(differences: list[float], digits: int) -> str:
    """The mean of paired differences and its 95 % interval."""
    if not differences:
        return "–"
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    half = float(stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5)
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


def spreads(cell: dict[str, Any], arm: str, key: str = "target_entropy") -> dict[int, dict[str, float]]:
    """Seed -> percentiles of the targets' entropy, and their distance."""
    return {
        int(name.rpartition("/")[2]): run[key]
        for name, run in sorted(cell["runs"].items())
        if name.rpartition("/")[0] == arm and key in run
    }


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
        ends = [(row["p5"], row["p95"]) for row in spreads(cell, arm).values()]
        entropy = "–" if not ends else "{:.2f}–{:.2f}".format(*np.mean(ends, 0))
        means = {metric: float(np.mean(numbers)) for metric, numbers in found.items()}
        less = "–" if arm == "kd" else paired(cell, arm, "kd")[1]
        lines.append(
            f"| {NAMES[arm]} | {len(found['auc'])} | {means['auc']:.2f}{sd} | {less} | {means['micro_f1']:.2f} |"
            f" {means['nll']:.3f} | {means['nll_fitted']:.3f} | {means['calibration_error']:.3f} | {entropy} |"
        )
    lines += ["", *demands(cell), "", *likelihoods(cell), "", *softness(cell)]
    if name.startswith("dbpedia_pt/"):
        lines += ["", "The labels of this test are distant ones too: it rewards a model that has learnt their noise."]
    return "\n".join(lines)


def likelihoods(cell: dict[str, Any]) -> list[str]:
    """NLL of each arm less that of two others, raw and after one temperature that was fitted on development data.

    What is left after it isn't mere calibration.
    """
    lines = [
        "| arm | NLL less plain KD | fitted T | NLL less trained again | fitted T |",
        "|---|---|---|---|---|",
    ]
    for arm in (arm for arm in NAMES if values(cell, arm, "nll")):
        shown = [
            "–" if arm == other else paired(cell, arm, other, metric)[1]
            for other in ("kd", "ce_again")
            for metric in ("nll", "nll_fitted")
        ]
        lines.append(f"| {NAMES[arm]} | {' | '.join(shown)} |")
    return lines


def softness(cell: dict[str, Any]) -> list[str]:
    """The claim of DTR: does the targets' entropy spread (p95 - p5) less than under a fixed temperature?

    Three of them: T = 1, the one with the best development AUC, and the one with the same median entropy.
    """
    lines = []
    for arm in ("dtr", "default", "paper"):
        own = spreads(cell, arm)
        others = {
            "plain KD, T = 1": spreads(cell, "kd"),
            "the best fixed T": spreads(cell, "kd_tuned"),
            "a fixed T of equal median": spreads(cell, arm, "fixed_of_equal_median"),
        }
        for name, other in others.items():
            seeds = sorted(own.keys() & other.keys())
            if not seeds:
                continue
            pairs = [(own[seed]["spread"], other[seed]["spread"]) for seed in seeds]
            narrower = sum(mine < theirs for mine, theirs in pairs)
            mine, theirs = np.mean(pairs, 0)
            lines.append(
                f"- entropy of the targets, {NAMES[arm]}: p95 - p5 = {mine:.3f} against {theirs:.3f} under {name}"
                f" (difference {with_interval([a - b for a, b in pairs], 3)}); narrower in {narrower} of {len(seeds)}"
            )
    return lines


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

    figure, (left, right, far) = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
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
        found = list(spreads(cell, arm).values())
        if found:
            low, middle, high = (float(np.mean([row[mark] for row in found])) for mark in ("p5", "p50", "p95"))
            right.plot([low, high], [place, place], color="tab:blue", linewidth=4, solid_capstyle="butt")
            right.plot([middle], [place], "o", color="black")
            far.plot([row["spread"] for row in found], [place] * len(found), "o", color="tab:blue", alpha=0.6)
        same = [row["spread"] for row in spreads(cell, arm, "fixed_of_equal_median").values()]
        far.plot(same, [place] * len(same), "x", color="tab:orange")
    right.set_yticks(range(len(shown)), [NAMES[arm] for arm in shown])
    right.set(xlabel="entropy of the targets, nats: p5, median, p95", xlim=(0, None))
    far.set_yticks(range(len(shown)), [])
    far.set(xlabel="p95 - p5 of each seed, nats; x: a fixed T of equal median", xlim=(0, None))
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
