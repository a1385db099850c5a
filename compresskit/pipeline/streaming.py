"""A run with little memory: every step on one part of the model, then the next part, from the files and to the files.

Only methods that say so (``Compressor.streams``) can run so. For those that need data the embeddings are run on the
calibration once, then each block on what the compressed ones before it give. What needs the whole model (fidelity,
quality, export) is refused by name, before anything is read.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from compresskit.calibrate.blocks import BlockCalibration
from compresskit.checkpoint.faults import point
from compresskit.checkpoint.save import check_free_space, save_written
from compresskit.checkpoint.shards import ShardWriter
from compresskit.checkpoint.source import Source
from compresskit.checkpoint.stream import StreamedModel
from compresskit.core import anatomy, processes, surgery
from compresskit.core.compressor import Compressor
from compresskit.core.context import Batch, Context
from compresskit.core.sites import Site
from compresskit.core.targets import Resolution
from compresskit.errors import RecipeError
from compresskit.pipeline import checks, gates
from compresskit.pipeline.data import calibration
from compresskit.pipeline.ledger import StepRecord, size_of
from compresskit.pipeline.options import Listener, Options
from compresskit.pipeline.plan import Plan, make_plan, require_same, resolutions, step_label
from compresskit.pipeline.publish import hand_over
from compresskit.pipeline.result import Result
from compresskit.recipe import Recipe
from compresskit.recipe.gates import check_gates

DISK_MARGIN = 1.2
MEASURED = frozenset({"size", "parameters"})
"""What gates may ask of a run that never has the whole model."""


def refuse_whole(recipe: Recipe, source: Source, options: Options) -> None:
    """Say what of the run needs the whole model in memory.

    Raises:
        RecipeError: CK-L062.
    """
    reasons = [
        f"{step_label(number, step.method)} looks at more than each matrix by itself"
        for number, step in enumerate(recipe.steps, 1)
        if type(step.method).streams is None or step.recover is not None
    ]
    asked = {
        "the source is compressed already": source.compressed,
        "`evaluate` runs the model": recipe.evaluate is not None,
        "`export` traces the model": recipe.export is not None and recipe.export.onnx is not None,
        "a largest loss of quality is measured by running the model": options.max_drop is not None,
        "a resumed run goes on from whole models": options.resume,
        "it is done on the CPU": options.device != "cpu",
        "it is done by one process": processes.count() > 1,
        "code that comes with a model may load it otherwise": options.trust_remote_code,
    }
    reasons += [sentence for sentence, holds in asked.items() if holds]
    reasons += [f"the gate on {gate.metric} runs the model" for gate in recipe.gates if gate.metric not in MEASURED]
    if reasons:
        raise _needs_all(reasons)


def plan_streamed(recipe: Recipe, source: Source, options: Options) -> Plan:
    """What ``apply_streamed`` would do."""
    refuse_whole(recipe, source, options)
    model = StreamedModel(source, options.dtype).model
    made = make_plan(model, recipe, source, strict=options.strict)
    _refuse_unreached(model, recipe, resolutions(model, recipe, strict=options.strict))
    return made


def _sees_data(method: Compressor) -> bool:
    """Whether ``method`` is fitted to what the compressed part of the model before it gives."""
    return type(method).streams == "block" and "calibration" in method.requirements()


def _refuse_unreached(model: PreTrainedModel, recipe: Recipe, found: Sequence[Resolution]) -> None:
    """Say which steps need inputs that no run of one block by itself gives.

    Raises:
        RecipeError: CK-L062.
    """
    stacks = anatomy.of(model).stacks
    reasons = []
    for number, (step, resolution) in enumerate(zip(recipe.steps, found, strict=True), 1):
        if not _sees_data(step.method):
            continue
        label = step_label(number, step.method)
        if len(stacks) > 1:
            reasons.append(f"{label} needs data, and the model has more than one stack of blocks")
        if any(stack.repeats > 1 for stack in stacks):
            reasons.append(f"{label} needs data, and the model runs its blocks several times")
        reasons += [
            f"{label} needs the inputs of {site.path}, outside of the blocks"
            for site in resolution.sites
            if site.block is None
        ]
    if reasons:
        raise _needs_all(reasons)


def _needs_all(reasons: Sequence[str]) -> RecipeError:
    return RecipeError(
        "CK-L062",
        "this can't be done with little memory, part by part",
        why="; ".join(reasons),
        fix="leave that out, or run without low memory",
    )


def apply_streamed(
    recipe: Recipe, source: Source, output: Path, options: Options, listener: Listener, expected: Plan | None
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
    run.found = resolutions(run.streamed.model, recipe, strict=options.strict)
    _refuse_unreached(run.streamed.model, recipe, run.found)
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
    options: Options
    listener: Listener
    found: list[Resolution] = field(default_factory=list)
    walks: dict[int, BlockCalibration] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    details: dict[int, dict[str, Any]] = field(default_factory=dict)
    warnings: dict[int, list[str]] = field(default_factory=dict)

    def execute(self, work: Path, output: Path, planned: list[str], started: float) -> Result:
        model, staged = self.streamed.model, work / "result"
        before = size_of(model)
        self._prepare(work)
        writers: list[ShardWriter] = []

        def write(folder: Path) -> bool:
            writers.append(ShardWriter(model, folder, len(self.streamed.parts)))
            for number, part in enumerate(self.streamed.parts):
                with self.streamed.loaded(part):
                    self._compress(number, work)
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
        rows = self._rows(before.bytes)
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
                        *self.notices,
                        *(warning for row in rows for warning in row["warnings"]),
                        "done part by part with little memory: the result was compared bit by bit, and not run",
                    ]
                )
            ),
            seconds=0.0,
            recipe=self.recipe.to_dict(),
            source=str(self.source.spec),
        )
        verdicts = check_gates(self.recipe.gates, gates.sizes(result), max_drop=None)
        hand_over(result, staged, output, verdicts, type(model).__name__, started, overwrite=self.options.overwrite)
        for row in rows:
            self.listener.step(row)
        return result

    def _prepare(self, work: Path) -> None:
        """Give each step that needs data a walk of its own over it: what it sees has come through the steps before."""
        asking = [number for number, step in enumerate(self.recipe.steps, 1) if _sees_data(step.method)]
        if not asking:
            return
        tokenizer = self.source.load_tokenizer()
        model, seed = self.streamed.model, self.options.seed
        batches = calibration(model, tokenizer, self.recipe, seed, self.notices.append)
        if tokenizer is None:
            self.notices.append("the model has no tokenizer: calibrated on random tokens")
        self.streamed.compute_buffers()
        self.walks = {number: BlockCalibration(batches, work) for number in asking}

    def _compress(self, index: int, work: Path) -> None:
        """All steps, one after the other, on what the part ``index`` holds."""
        part = self.streamed.parts[index]
        for number, (step, resolution) in enumerate(zip(self.recipe.steps, self.found, strict=True), 1):
            began = time.perf_counter()
            walk = self.walks.get(number)
            if walk is not None and index == 0:
                walk.begin(self.streamed.model)
            elif walk is not None and part.path:
                walk.enter(self.streamed.model, part.path)
            sites = [site for site in resolution.sites if part.holds(site.path)]
            if sites:
                self._apply(number, step.method, sites, walk or (), work)
            if walk is not None:
                self._go_on(number, index)
            self.seconds[number] = self.seconds.get(number, 0.0) + time.perf_counter() - began

    def _apply(
        self, number: int, method: Compressor, sites: Sequence[Site], batches: Sequence[Batch], work: Path
    ) -> None:
        seed = self.options.seed + number
        torch.manual_seed(seed)
        context = Context(
            seed=seed,
            calibration=batches,
            work=work,
            warn=self.warnings.setdefault(number, []).append,
            details=self.details.setdefault(number, {}),
        )
        method.apply(self.streamed.model, sites, context)
        checks.refuse_non_finite(self.streamed.model, [], step_label(number, method))

    def _go_on(self, number: int, index: int) -> None:
        """Run what the walk of step ``number`` has come to, as it now is, for the block after it."""
        following = [part.path for part in self.streamed.parts[index + 1 : index + 2] if part.path]
        if not following:
            del self.walks[number]
        elif self.streamed.parts[index].path:
            self.walks[number].enter(self.streamed.model, following[0])

    def _rows(self, held: int) -> list[dict[str, Any]]:
        """The ledger; what the whole model takes after a step follows from what each of its sites saved."""
        rows = []
        parameters = size_of(self.streamed.model).parameters
        for number, (step, resolution) in enumerate(zip(self.recipe.steps, self.found, strict=True), 1):
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
