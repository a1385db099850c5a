"""The order of things: check everything, run the steps, prove the result. The only place that knows it.

Several processes (``core.processes``) run the same steps and train together; the first one alone writes.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from compresskit.checkpoint.faults import point
from compresskit.checkpoint.layout import read_layout
from compresskit.checkpoint.lock import output_lock
from compresskit.checkpoint.readback import refuse_absent_values
from compresskit.checkpoint.save import check_free_space, check_output
from compresskit.checkpoint.source import Source, open_source
from compresskit.core import processes
from compresskit.core.context import Context
from compresskit.core.device import usable
from compresskit.errors import UsageError
from compresskit.pipeline.data import RunData, prepare
from compresskit.pipeline.gates import refuse_unmeasurable
from compresskit.pipeline.ledger import size_of
from compresskit.pipeline.options import Listener, Options
from compresskit.pipeline.plan import Plan, data_files, make_plan, recipe_hash, require_same
from compresskit.pipeline.publish import domain_warnings, publish
from compresskit.pipeline.result import Result
from compresskit.pipeline.steps import StepRunner
from compresskit.pipeline.streaming import apply_streamed, plan_streamed
from compresskit.pipeline.workspace import Workspace, fingerprint
from compresskit.recipe import Recipe
from compresskit.tasks.fidelity import Reference

DISK_MARGIN = 1.2


def plan(model: str | Path | None, recipe: Any, *, options: Options | None = None) -> Plan:
    """What ``apply`` would do.

    Args:
        model: a local folder, a hub id, or ``pkg:NAME``.
        recipe: a path, a mapping, or a ``Recipe``.

    Raises:
        CompressKitError: whatever would stop ``apply`` before it touches a weight.
    """
    options = options or Options()
    parsed = _read(recipe, options)
    source = _open(model, parsed, options)
    if options.low_memory:
        return plan_streamed(parsed, source, options)
    return make_plan(source.load_model(dtype=options.dtype), parsed, source, strict=options.strict)


def _read(recipe: Any, options: Options) -> Recipe:
    parsed = Recipe.load(recipe)
    refuse_unmeasurable(parsed, options.max_drop)
    return parsed


def _open(model: str | Path | None, recipe: Recipe, options: Options) -> Source:
    spec = model if model is not None else recipe.model
    if spec is None:
        raise UsageError("CK-U010", "no model given", fix="name one with --model, or as `model:` in the recipe")
    return open_source(spec, revision=options.revision, trust_remote_code=options.trust_remote_code)


def apply(
    model: str | Path | PreTrainedModel | None,
    recipe: Any,
    output: str | Path | None = None,
    *,
    tokenizer: Any = None,
    options: Options | None = None,
    listener: Listener | None = None,
    expected: Plan | None = None,
) -> Result:
    """Run ``recipe`` on ``model``; with ``output``, save, reload in a fresh process and prove it.

    Args:
        model: a local folder, a hub id, ``pkg:NAME``, or a loaded model (which is changed in place, and can't be
            saved: give a path for that).
        recipe: a path, a mapping, or a ``Recipe``.
        output: the folder to make.
        tokenizer: for a loaded model.
        expected: a saved plan; another model or recipe than it was made for is refused.

    Returns:
        Result: with ``.model`` the live compressed model; none with ``low_memory``.

    Raises:
        GateError: a gate was missed; the best effort is in ``OUT.rejected``.
        CompressKitError: with a code, a place, a cause and a remedy.
    """
    options, listener = options or Options(), listener or Listener()
    parsed = _read(recipe, options)
    usable(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if isinstance(model, PreTrainedModel):
        if output is not None or options.low_memory:
            raise UsageError("CK-U014", "a loaded model has no files to travel along", fix="give the checkpoint's path")
        return _Run(parsed, None, None, options, listener, expected).execute(model, tokenizer)
    source = _open(model, parsed, options)
    target = None if output is None else Path(output)
    with ExitStack() as stack:
        if target is not None:
            place = target

            def take() -> None:
                check_output(place, source=source, overwrite=options.overwrite)
                stack.enter_context(output_lock(place))

            processes.lead(take)
        if options.low_memory:
            if target is None:
                raise UsageError("CK-U015", "no output folder given: with low memory there is no model to give back")
            return apply_streamed(parsed, source, target, options, listener, expected)
        run = _Run(parsed, source, target, options, listener, expected)
        return run.execute(source.load_model(dtype=options.dtype, device=options.device), source.load_tokenizer())


class _Run:
    """One run of one recipe."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source | None,
        output: Path | None,
        options: Options,
        listener: Listener,
        expected: Plan | None,
    ) -> None:
        self.recipe, self.source, self.output = recipe, source, output
        self.options, self.listener, self.expected = options, listener, expected
        self.warnings: list[str] = [] if source is None else list(source.notices)
        self.teacher = None if recipe.teacher is None else open_source(recipe.teacher)

    def execute(self, model: PreTrainedModel, tokenizer: Any) -> Result:
        started = time.perf_counter()
        refuse_absent_values(model)
        self._warn_of_what_is_left_out()
        made = make_plan(model, self.recipe, self.source, strict=self.options.strict)
        if self.expected is not None:
            require_same(made, self.expected)
        self.listener.plan(made)
        self.warnings += made.warnings
        before = {"parameters": size_of(model).parameters, "disk_bytes": self._disk_before(model)}
        self._preflight(max(before["disk_bytes"], size_of(model).bytes))  # in memory perhaps in a wider type
        data = prepare(model, tokenizer, self.recipe, self.options.seed, self.warnings.append)
        if data.synthetic:
            self.warnings.append("the model has no tokenizer: calibrated and compared on random tokens")
        reference = Reference.of(model, data.held_out, self._sentence_transformer())
        with ExitStack() as stack:
            workspace = self._workspace(stack)
            done = workspace.start(resume=self.options.resume)
            if done:
                model = workspace.load(self.options.device)
            processes.wait()  # the first one will write another state
            model = self._steps(model, tokenizer, data, reference, workspace, done)
            result = self._finish(model, before, data, reference, workspace, started)
            workspace.remove()
        return result

    def _warn_of_what_is_left_out(self) -> None:
        asked = {
            "evaluate": self.recipe.evaluate,
            "gates": self.recipe.gates,
            "export": self.recipe.export,
            "max_drop": self.options.max_drop,
        }
        left_out = [name for name, value in asked.items() if value not in (None, ())]
        if self.output is None and left_out:
            self.warnings.append(f"no output folder was given: {', '.join(left_out)} left out, they look at the files")

    def _disk_before(self, model: PreTrainedModel) -> int:
        return self.source.disk_bytes if self.source is not None else size_of(model).bytes

    def _sentence_transformer(self) -> Any:
        return self.source.sentence_transformer if self.source is not None else None

    def _preflight(self, bytes_before: int) -> None:
        if self.output is not None:
            # Step state and staged output may both be there at once, none of them larger than the source.
            check_free_space(self.output, int(DISK_MARGIN * bytes_before))

    def _workspace(self, stack: ExitStack) -> Workspace:
        """Beside the output, where it stays if the run fails; without an output a folder that goes with ``stack``."""
        if self.output is None:
            own = tempfile.TemporaryDirectory(prefix="compresskit-") if processes.is_first() else None
            scratch = processes.agree("" if own is None else stack.enter_context(own))
            return Workspace(Path(scratch), {}, keep_steps=False)
        identity = {
            "recipe": recipe_hash(self.recipe),
            "model": self.source.fingerprint if self.source is not None else "",
            "teacher": self.teacher.fingerprint if self.teacher is not None else "",
            **{f"file of {key}": fingerprint(name) for key, name in data_files(self.recipe).items()},
            "seed": self.options.seed,
            "device": torch.device(self.options.device).type,
            "dtype": str(self.options.dtype),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        folder = self.output.with_name(f"{self.output.name}.ck-work")
        return Workspace(folder, identity, keep_steps=len(self.recipe.steps) > 1)

    def _steps(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        data: RunData,
        reference: Reference,
        workspace: Workspace,
        done: int,
    ) -> PreTrainedModel:
        context = Context(
            device=torch.device(self.options.device),
            seed=self.options.seed,
            calibration=data.calibration,
            texts=data.texts,
            tokenizer=tokenizer,
            teacher=self._teacher(model),
            teacher_tokenizer=None if self.teacher is None else self.teacher.load_tokenizer,
            data=self.recipe.data,
            work=workspace.scratch,
        )
        runner = StepRunner(data, reference, context, self.options.strict)
        runner.remember(self.recipe, workspace.rows)
        total = len(self.recipe.steps)
        for number, step in enumerate(self.recipe.steps, 1):
            if number <= done:
                continue
            progress = partial(self._progress, number, total)
            model, record = runner.run(model, number, step, progress)
            row = record.to_dict()
            workspace.finish_step(model, row)
            point(f"step.{number}.finished")
            self.listener.step(row)
        return model

    def _progress(self, number: int, total: int, share: float, what: str) -> None:
        self.listener.progress((number - 1 + share) / total, what)

    def _teacher(self, model: PreTrainedModel) -> Callable[[], PreTrainedModel]:
        """The recipe's teacher, or the model as it came in: reopened from its files, or copied before any change."""
        source = self.teacher or self.source
        if source is None:
            needed = any(
                "teacher" in step.method.requirements() or step.recover is not None for step in self.recipe.steps
            )
            kept = copy.deepcopy(model).eval() if needed else None
            return lambda: kept  # type: ignore[return-value]
        return lambda: source.load_model(dtype=self.options.dtype, device=self.options.device)

    def _finish(
        self,
        model: PreTrainedModel,
        before: dict[str, int],
        data: RunData,
        reference: Reference,
        workspace: Workspace,
        started: float,
    ) -> Result:
        rows = workspace.rows
        size = size_of(model)
        fidelity = rows[-1]["fidelity"] if rows else reference.compare(model)
        warnings = [*self.warnings, *(warning for row in rows for warning in row["warnings"])]
        warnings += domain_warnings(fidelity)
        result = Result(
            output=None if self.output is None else str(self.output),
            native=read_layout(model) == [],
            steps=rows,
            before=before,
            after={"parameters": size.parameters, "disk_bytes": size.bytes},
            reload_max_abs_diff=None,
            fidelity=fidelity,
            warnings=list(dict.fromkeys(warnings)),
            seconds=0.0,
            recipe=self.recipe.to_dict(),
            source="" if self.source is None else str(self.source.spec),
            model=model,
        )
        if self.output is not None and self.source is not None:
            self.listener.progress(1.0, "saving and reopening in a fresh process")
            given = (self.recipe, self.source, self.output, data, reference, self.options, started)
            processes.lead(lambda: publish(result, *given))
        result.seconds = round(time.perf_counter() - started, 2)
        return result
