"""Save, reopen in a fresh process, compare, gate, and write down what was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedModel

from compresskit.calibrate.outputs import outputs_of, result_of
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.prove import reload_and_run
from compresskit.checkpoint.save import add_files, publish_folder, save_checkpoint
from compresskit.checkpoint.source import Source
from compresskit.errors import GateError, ModelError
from compresskit.export import export_onnx
from compresskit.export.trace import check_profile
from compresskit.pipeline import gates
from compresskit.pipeline.data import RunData
from compresskit.pipeline.options import Options
from compresskit.pipeline.profiles import AUTO, export_best
from compresskit.pipeline.quality import measure_quality
from compresskit.pipeline.result import Result
from compresskit.recipe import Recipe
from compresskit.recipe.gates import Verdict, check_gates
from compresskit.recipe.schema import OnnxExport
from compresskit.report.card import model_card
from compresskit.tasks.fidelity import Reference

DOMAIN_GAP = 0.02


def publish(
    result: Result,
    recipe: Recipe,
    source: Source,
    output: Path,
    data: RunData,
    reference: Reference,
    options: Options,
    started: float,
) -> None:
    """Make ``output`` and prove it. A missed gate leaves ``output`` untouched and the effort in ``OUT.rejected``."""
    model = result.model
    if model is None:
        raise ModelError("CK-L031", "there is no model to publish")
    source.verify_unchanged()
    staged = output.with_name(f"{output.name}.ck-work") / "result"
    saved = save_checkpoint(model, staged, source=source, extra_files={"recipe.yaml": recipe.to_yaml()}, overwrite=True)
    result.native = saved.native
    _prove(model, result, staged, data)
    result.after["disk_bytes"] = saved.disk_bytes
    result.quality = measure_quality(recipe, source, staged)
    verdicts = check_gates(recipe.gates, gates.measure(result, source, staged, recipe), max_drop=options.max_drop)
    if all(verdict.passed for verdict in verdicts) and recipe.export is not None and recipe.export.onnx is not None:
        result.onnx = _export(staged, source, recipe.export.onnx)
    hand_over(result, staged, output, verdicts, type(model).__name__, started, overwrite=options.overwrite)


def hand_over(
    result: Result,
    staged: Path,
    output: Path,
    verdicts: Sequence[Verdict],
    architecture: str,
    started: float,
    *,
    overwrite: bool,
) -> None:
    """Write report and card into the finished checkpoint ``staged`` and put it in place; raise on a missed gate."""
    result.gates = [verdict.to_dict() for verdict in verdicts]
    missed = [verdict for verdict in verdicts if not verdict.passed]
    result.seconds = round(time.perf_counter() - started, 2)
    card = model_card(result.to_dict(), architecture=architecture)
    target = output.with_name(f"{output.name}.rejected") if missed else output
    add_files(staged, {"report.json": report_json(result).encode(), "README.md": card.encode()})
    publish_folder(staged, target, overwrite=overwrite or bool(missed))
    if missed:
        raise GateError(
            "CK-G001",
            "; ".join(str(verdict) for verdict in missed),
            where=str(target),
            why="the result is kept there with its report, and the output was not touched",
            fix="loosen the gate, ask for less compression, or add a recovery step",
        )


def _export(folder: Path, source: Source, wanted: OnnxExport) -> dict[str, Any]:
    """Write ``onnx/`` into the checkpoint; what the file is, without paths of this machine."""
    model, target = load_model(folder), folder / "onnx" / "model.onnx"
    about: dict[str, Any] = {
        "tokenizer": source.load_tokenizer(),
        "sentence_transformer": source.sentence_transformer,
    }
    more: dict[str, Any] = {}
    if wanted.profile == AUTO:
        report, candidates = export_best(model, target, min_cosine=wanted.min_cosine, **about)
        more["candidates"] = [candidate.to_dict() for candidate in candidates]
    else:
        report = export_onnx(model, target, profile=check_profile(wanted.profile), **about)
    content = report.to_dict()
    del content["parity"]["cases"]
    return {**content, **more, "output": f"onnx/{report.path.name}"}


def _prove(model: PreTrainedModel, result: Result, folder: Path, data: RunData) -> None:
    """Rule 4: reopen the saved files in a fresh process and compare, before anything is published."""
    batches = [data.probe, *(batches[0] for batches in data.held_out.values())]
    expected = [outputs_of(model, batch) for batch in batches]
    found = reload_and_run(folder, [dict(batch) for batch in batches])
    again = [result_of(SimpleNamespace(**tensors)) for tensors in found]
    difference = max(float((live - other).abs().max()) for live, other in zip(expected, again, strict=True))
    result.reload_max_abs_diff = difference
    if not difference <= 0.0:
        raise ModelError(
            "CK-L030",
            f"the saved model, reopened in a fresh process, differs by up to {difference:.3e}",
            where=str(folder),
            fix="this is a defect of a layer or of the layout: please report it with the recipe",
        )


def report_json(result: Result) -> str:
    """The content of ``report.json``."""
    return json.dumps(result.to_dict(), indent=1, sort_keys=True) + "\n"


def domain_warnings(fidelity: dict[str, Any]) -> list[str]:
    """A warning when two kinds of text keep very different fidelity."""
    domains = dict(fidelity.get("domains", {}))
    scores = {
        name: values.get("cosine_mean", values.get("top1_agreement")) for name, values in domains.items() if values
    }
    known = {name: score for name, score in scores.items() if score is not None}
    if len(known) < 2 or max(known.values()) - min(known.values()) <= DOMAIN_GAP:
        return []
    best, worst = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    return [
        f"fidelity differs by kind of text: {known[best]:.3f} on {best}, {known[worst]:.3f} on {worst};"
        " calibrate on text like yours (`calibration: {data: FILE}`)"
    ]
