"""Running one step: resolve its sites on the tree as it stands, apply, check, recover, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel

from compresskit.calibrate.blocks import BlockCalibration
from compresskit.calibrate.outputs import outputs_of
from compresskit.core import surgery
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.targets import Resolution, resolve
from compresskit.errors import RecipeError
from compresskit.pipeline import checks
from compresskit.pipeline.data import RunData
from compresskit.pipeline.ledger import StepRecord, fingerprint, size_of
from compresskit.pipeline.plan import step_label
from compresskit.recipe import Recipe, Step
from compresskit.tasks.fidelity import Reference

Progress = Callable[[float, str], None]


@dataclass
class StepRunner:
    """Runs the steps of one recipe in turn; remembers which step took which module."""

    data: RunData
    reference: Reference
    context: Context
    strict: bool = False
    taken: dict[str, str] = field(default_factory=dict)

    def run(
        self, model: PreTrainedModel, number: int, step: Step, progress: Progress
    ) -> tuple[PreTrainedModel, StepRecord]:
        """Apply ``step`` and its recovery to ``model``; the model after it, and its row of the ledger."""
        label = step_label(number, step.method)
        started = time.perf_counter()
        warnings: list[str] = []
        details: dict[str, Any] = {}
        found = resolve(model, step.method, taken=self.taken, strict=self.strict)
        model = self._apply(model, label, step.method, found, progress, warnings, details, seed=number)
        recovery = None
        if step.recover is not None:
            sites = resolve(model, step.recover, taken=self.taken).sites
            recovered: dict[str, Any] = {}
            whole = Resolution(sites)
            name = f"recovery of {label}"
            model = self._apply(model, name, step.recover, whole, progress, warnings, recovered, seed=number)
            recovery = {"method": step.recover.full_name(), "details": recovered}
        seconds = time.perf_counter() - started
        size = size_of(model)
        fidelity = self.reference.compare(model)
        return model, StepRecord(
            step.method.full_name(),
            step.method.model_dump(mode="json", exclude_defaults=True),
            [site.path for site in found.sites],
            dict(found.skipped),
            size.parameters,
            size.bytes,
            round(seconds, 3),
            fidelity,
            recovery,
            details,
            warnings,
        )

    def remember(self, recipe: Recipe, rows: Sequence[dict[str, Any]]) -> None:
        """Learn from the ledger of a resumed run which step took which module."""
        for number, (step, row) in enumerate(zip(recipe.steps, rows, strict=False), 1):
            if type(step.method).leaves is not None:
                self.taken.update(dict.fromkeys(row["sites"], step_label(number, step.method)))

    def _apply(
        self,
        model: PreTrainedModel,
        label: str,
        method: Compressor,
        found: Resolution,
        progress: Progress,
        warnings: list[str],
        details: dict[str, Any],
        seed: int,
    ) -> PreTrainedModel:
        torch.manual_seed(self.context.seed + seed)
        walking = type(method).walk == "block"
        walk = BlockCalibration(self.data.calibration)
        nothing: list[str] = []
        context = replace(
            self.context,
            calibration=walk if walking else self.data.calibration,
            seed=self.context.seed + seed,
            progress=lambda share, what: progress(share, f"{label}: {what}"),
            warn=warnings.append,
            nothing=nothing.append,
            details=details,
        )
        before, hooks = fingerprint(model), checks.hooks(model)
        progress(0.0, label)
        for sites in _portions(method, found.sites):
            if walking and sites[0].block is not None:
                walk.enter(model, sites[0].block)
            returned = method.apply(model, sites, context)
            model = returned if returned is not None else model
        model.eval()
        surgery.sync_config(model)
        why = method.nothing_asked() or " ".join(nothing) or None
        self._check(model, label, why, before, hooks, warnings)
        if type(method).leaves is not None:
            for site in found.sites:
                for path in (site.path, *site.members):
                    self.taken[path] = label
        return model

    def _check(
        self,
        model: PreTrainedModel,
        label: str,
        nothing: str | None,
        before: dict[str, tuple[Any, ...]],
        hooks: set[tuple[str, str, int]],
        warnings: list[str],
    ) -> None:
        if not checks.changed(before, fingerprint(model)):
            if nothing is None or self.strict:
                raise RecipeError(
                    "CK-T054",
                    f"{label} changed nothing",
                    why=nothing or "it was asked for a change and found nothing to do",
                    fix="ask for more, or remove the step",
                )
            warnings.append(f"{label} changed nothing: {nothing}")
        checks.refuse_new_hooks(model, hooks, label)
        checks.refuse_non_finite(model, [outputs_of(model, self.data.probe)], label)
        notes = (checks.check_padding(model, self.data.probe, label), checks.check_cache(model, self.data.probe, label))
        warnings.extend(note for note in notes if note is not None)


def _portions(method: Compressor, sites: Sequence[Site]) -> list[list[Site]]:
    """All sites at once, or block by block for a method that walks."""
    if type(method).walk == "model":
        return [list(sites)]
    return [list(part) for _, part in groupby(sites, key=lambda site: site.block)]
