"""What the gates of a recipe may ask of a run, and the figures they are checked against."""

from __future__ import annotations

from pathlib import Path

from compresskit.bench.options import BenchOptions
from compresskit.bench.run import run as bench
from compresskit.checkpoint.source import Source
from compresskit.errors import ModelError
from compresskit.pipeline.result import Result
from compresskit.recipe import Recipe
from compresskit.recipe.gates import Kind, Measured, check_gates
from compresskit.tasks import named

LATENCY = "latency.p50"


def kinds(recipe: Recipe) -> dict[str, Kind]:
    """What ``measure`` gives, by metric. Quality is the task's where there is one, else fidelity to the source."""
    quality: Kind = "fraction"
    if recipe.evaluate is not None:
        # Perplexity is no score of 100: gates on it are in x, % or abs.
        quality = "points" if named(recipe.evaluate.task).unit == "points" else "plain"
    return {"size": "bytes", "parameters": "plain", "fidelity": "fraction", "quality": quality, LATENCY: "seconds"}


def refuse_unmeasurable(recipe: Recipe, max_drop: float | None) -> None:
    """Refuse now, and not after an hour of work, a gate that no result could be checked against.

    Raises:
        RecipeError: CK-G002 for a metric that no run measures; CK-G003 for a unit that doesn't fit.
    """
    check_gates(
        recipe.gates, {name: Measured(1.0, 1.0, kind) for name, kind in kinds(recipe).items()}, max_drop=max_drop
    )


def measure(result: Result, source: Source, folder: Path, recipe: Recipe) -> dict[str, Measured]:
    """What ``kinds`` lists, of the checkpoint ``folder``; the latency only if a gate asks for it."""
    found = sizes(result)
    kind = kinds(recipe)
    kept = result.fidelity.get("cosine_mean", result.fidelity.get("top1_agreement", float("nan")))
    found["fidelity"] = found["quality"] = Measured(kept, 1.0, kind["fidelity"])
    if result.quality is not None:
        found["quality"] = Measured(result.quality["after"], result.quality["before"], kind["quality"])
    if any(gate.metric == LATENCY for gate in recipe.gates):
        found[LATENCY] = _latency(source, folder)
    return found


def sizes(result: Result) -> dict[str, Measured]:
    """What needs no run of the model."""
    return {
        "size": Measured(result.after["disk_bytes"], result.before["disk_bytes"], "bytes"),
        "parameters": Measured(result.after["parameters"], result.before["parameters"]),
    }


def _latency(source: Source, folder: Path) -> Measured:
    """Median latency by a quick run, the ratio from calls in turns."""
    record = bench(BenchOptions(models=(str(source.path), str(folder)), details=False))
    row = record.headline
    before = record.baseline.metric(LATENCY, record.plan.headline).value
    if row is None or row.ratio is None or before is None:
        raise ModelError("CK-B007", "the latency of the result could not be measured", where=str(folder))
    return Measured(row.ratio * before / 1e3, before / 1e3, "seconds")
