"""A run with little memory: every step on one part of the model, then the next part, from the files and to the files.

Only methods that change each site by its own weights alone can run so. No forward pass is made: what needs the whole
model (fidelity, quality, export, calibration) is refused by name, before anything is read.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compresskit.checkpoint.faults import point
from compresskit.checkpoint.save import check_free_space, save_written
from compresskit.checkpoint.shards import ShardWriter
from compresskit.checkpoint.source import Source
from compresskit.checkpoint.stream import Part, StreamedModel
from compresskit.core import processes, surgery
from compresskit.core.context import Context
from compresskit.core.targets import Resolution
from compresskit.errors import RecipeError
from compresskit.pipeline import checks
from compresskit.pipeline.ledger import StepRecord, size_of
from compresskit.pipeline.plan import Plan, make_plan, require_same, resolutions, step_label
from compresskit.pipeline.publish import hand_over
from compresskit.pipeline.result import Result
from compresskit.recipe import Recipe
from compresskit.recipe.gates import Measured, check_gates

DISK_MARGIN = 1.2
MEASURED = frozenset({"size", "parameters"})
"""What gates may ask of a run that never has the whole model."""


def refuse_whole(recipe: Recipe, source: Source, options: Any) -> None:
    """Say what of the run needs the whole model in memory.

    Raises:
        RecipeError: CK-L062.
    """
    reasons = [
        f"{step_label(number, step.method)} looks at more than each matrix by itself"
        for number, step in enumerate(recipe.steps, 1)
        if not type(step.method).streams or step.recover is not None
    ]
    asked = {
        "the source is compressed already": source.compressed,
        "`evaluate` runs the model": recipe.evaluate is not None,
        "`export` traces the model": recipe.export is not None and recipe.export.onnx is not None,
        "a resumed run goes on from whole models": options.resume,
        "it is done on the CPU": options.device != "cpu",
        "it is done by one process": processes.count() > 1,
        "code that comes with a model may load it otherwise": options.trust_remote_code,
    }
    reasons += [sentence for sentence, holds in asked.items() if holds]
    reasons += [f"the gate on {gate.metric} runs the model" for gate in recipe.gates if gate.metric not in MEASURED]
    if reasons:
        raise RecipeError(
            "CK-L062",
            "this can't be done with little memory, part by part",
            why="; ".join(reasons),
            fix="leave that out, or run without low memory",
        )


def plan_streamed(recipe: Recipe, source: Source, options: Any) -> Plan:
    """What ``apply_streamed`` would do."""
    refuse_whole(recipe, source, options)
    return make_plan(StreamedModel(source, options.dtype).model, recipe, source, strict=options.strict)


def apply_streamed(
    recipe: Recipe, source: Source, output: Path, options: Any, listener: Any, expected: Plan | None
) -> Result:
    """Run ``recipe`` part by part, and publish the checkpoint ``output``; the result has no live model.

    Every weight file is read back and compared with what was to be written while that is in memory. The layout is
    proved on the model without values. The model isn't run.

    Raises:
        RecipeError: CK-L062, the recipe needs the whole model; GateError and others as ``apply``.
    """
    started = time.perf_counter()
    refuse_whole(recipe, source, options)
    run = _StreamedRun(recipe, source, StreamedModel(source, options.dtype), options, listener)
    made = make_plan(run.streamed.model, recipe, source, strict=options.strict)
    if expected is not None:
        require_same(made, expected)
    listener.plan(made)
    check_free_space(output, int(DISK_MARGIN * source.disk_bytes))
    work = output.with_name(f"{output.name}.ck-work")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        return run.execute(work, output, made.warnings, started)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass
class _StreamedRun:
    recipe: Recipe
    source: Source
    streamed: StreamedModel
    options: Any
    listener: Any
    seconds: dict[int, float] = field(default_factory=dict)
    details: dict[int, dict[str, Any]] = field(default_factory=dict)
    warnings: dict[int, list[str]] = field(default_factory=dict)

    def execute(self, work: Path, output: Path, planned: list[str], started: float) -> Result:
        model, staged = self.streamed.model, work / "result"
        before = size_of(model)
        found = resolutions(model, self.recipe, strict=self.options.strict)
        writers: list[ShardWriter] = []

        def write(folder: Path) -> bool:
            writers.append(ShardWriter(model, folder, len(self.streamed.parts)))
            for number, part in enumerate(self.streamed.parts):
                with self.streamed.loaded(part):
                    self._compress(part, found, work)
                    writers[-1].write()
                point(f"part.{number + 1}.finished")
                self.listener.progress((number + 1) / len(self.streamed.parts), part.path or "outside of the blocks")
            surgery.sync_config(model)
            return writers[-1].finish()

        saved = save_written(
            write,
            lambda folder: writers[-1].check(),
            staged,
            needed=self.source.disk_bytes,
            source=self.source,
            extra_files={"recipe.yaml": self.recipe.to_yaml()},
        )
        self.source.verify_unchanged()
        rows = self._rows(found, before.bytes)
        after = size_of(model)
        result = Result(
            output=str(output),
            native=saved.native,
            steps=rows,
            before={"parameters": before.parameters, "disk_bytes": self.source.disk_bytes},
            after={"parameters": after.parameters, "disk_bytes": saved.disk_bytes},
            reload_max_abs_diff=None,
            fidelity={},
            warnings=list(
                dict.fromkeys(
                    [
                        *self.source.notices,
                        *planned,
                        *(warning for row in rows for warning in row["warnings"]),
                        "done part by part with little memory: the result was compared bit by bit, and not run",
                    ]
                )
            ),
            seconds=0.0,
            recipe=self.recipe.to_dict(),
            source=str(self.source.spec),
        )
        measured = {
            "size": Measured(result.after["disk_bytes"], result.before["disk_bytes"], "bytes"),
            "parameters": Measured(result.after["parameters"], result.before["parameters"]),
        }
        verdicts = check_gates(self.recipe.gates, measured, max_drop=None)
        hand_over(result, staged, output, verdicts, type(model).__name__, started, overwrite=self.options.overwrite)
        for row in rows:
            self.listener.step(row)
        return result

    def _compress(self, part: Part, found: list[Resolution], work: Path) -> None:
        """All steps, one after the other, on what ``part`` holds."""
        for number, (step, resolution) in enumerate(zip(self.recipe.steps, found, strict=True), 1):
            sites = [site for site in resolution.sites if part.holds(site.path)]
            if not sites:
                continue
            began = time.perf_counter()
            seed = self.options.seed + number
            torch.manual_seed(seed)
            context = Context(
                seed=seed,
                work=work,
                warn=self.warnings.setdefault(number, []).append,
                details=self.details.setdefault(number, {}),
            )
            step.method.apply(self.streamed.model, sites, context)
            checks.refuse_non_finite(self.streamed.model, [], step_label(number, step.method))
            self.seconds[number] = self.seconds.get(number, 0.0) + time.perf_counter() - began

    def _rows(self, found: list[Resolution], held: int) -> list[dict[str, Any]]:
        """The ledger; what the whole model takes after a step follows from what each of its sites saved."""
        rows = []
        parameters = size_of(self.streamed.model).parameters
        for number, (step, resolution) in enumerate(zip(self.recipe.steps, found, strict=True), 1):
            details = self.details.get(number, {})
            held -= sum(_saved(detail) for detail in details.values())
            record = StepRecord(
                step.method.full_name(),
                step.method.model_dump(mode="json", exclude_defaults=True),
                [site.path for site in resolution.sites],
                dict(resolution.skipped),
                parameters,
                held,
                round(self.seconds.get(number, 0.0), 3),
                {},
                None,
                details,
                self.warnings.get(number, []),
            )
            rows.append(record.to_dict())
        return rows


def _saved(detail: Mapping[str, Any]) -> int:
    before, after = detail.get("bytes", (0, 0))
    return int(before) - int(after)
