"""What would happen: the sites of every step, what they will hold, and what is wrong, before any weight is touched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compresskit.calibrate.sources import BUILTIN
from compresskit.checkpoint.source import Source
from compresskit.core.compressor import Compressor
from compresskit.core.sites import Site
from compresskit.core.targets import Resolution, candidates, resolve
from compresskit.errors import DataError, RecipeError, UsageError
from compresskit.pipeline.ledger import size_of
from compresskit.recipe import Recipe
from compresskit.tasks import named
from compresskit.tasks.data import exists

PLAN_VERSION = 1


@dataclass(frozen=True)
class PlannedStep:
    """One step: its sites, those left out with the reason, and the bytes that it is expected to save, if known."""

    method: str
    options: dict[str, Any]
    sites: list[str]
    skipped: dict[str, str]
    predicted_saving: int | None
    recover: str | None = None


@dataclass(frozen=True)
class Plan:
    """The outcome of ``plan``: bound to one recipe and one model by their hashes."""

    model: str
    model_fingerprint: str
    recipe: dict[str, Any]
    recipe_hash: str
    steps: list[PlannedStep]
    bytes_before: int
    predicted_bytes: int | None
    warnings: list[str] = field(default_factory=list)
    version: int = PLAN_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """Read a saved plan.

        Raises:
            UsageError: CK-U011 for another version or a broken file.
        """
        if data.get("version") != PLAN_VERSION:
            raise UsageError("CK-U011", f"this plan has version {data.get('version')!r}, not {PLAN_VERSION}")
        try:
            steps = [PlannedStep(**step) for step in data["steps"]]
            return Plan(**{**data, "steps": steps})
        except (KeyError, TypeError) as error:
            raise UsageError("CK-U011", "the plan file is incomplete", why=str(error)) from error


def recipe_hash(recipe: Recipe) -> str:
    """sha256 of the resolved recipe."""
    return hashlib.sha256(recipe.to_yaml().encode()).hexdigest()


def make_plan(model: PreTrainedModel, recipe: Recipe, source: Source | None, *, strict: bool = False) -> Plan:
    """Resolve every step against the model as the steps before will leave it.

    Steps are followed by what each method says it ``leaves`` at its sites, so that an impossible order is found now
    and not after an hour of work.

    Raises:
        RecipeError: a pattern, a refusal, an impossible order; with ``strict`` also a step that asks for nothing.
        DataError: CK-D030, if a step needs data that the recipe doesn't give; CK-D001 for a file that isn't there.
    """
    _check_files(recipe)
    tree = _ExpectedTree(model)
    warnings: list[str] = []
    planned = []
    before = size_of(model).bytes
    predicted: int | None = before
    for number, step in enumerate(recipe.steps, 1):
        method = step.method
        label = step_label(number, method)
        nothing = method.nothing_asked()
        if nothing:
            if strict:
                raise RecipeError("CK-R030", f"{label} asks for nothing", why=nothing)
            warnings.append(f"{label} asks for nothing: {nothing}")
        _check_needs(label, method, recipe)
        found = tree.resolve(method, strict=strict)
        note = method.plan_note(model, found.sites)
        if note is not None:
            warnings.append(f"{label}: {note}")
        saving = tree.saving(method, found.sites)
        predicted = predicted - saving if predicted is not None and saving is not None else None
        tree.follow(label, method, found.sites)
        planned.append(
            PlannedStep(
                method.full_name(),
                method.model_dump(mode="json", exclude_defaults=True),
                [site.path for site in found.sites],
                dict(found.skipped),
                saving,
                step.recover.full_name() if step.recover is not None else None,
            )
        )
    warnings += order_warnings(recipe)
    return Plan(
        str(source.spec) if source is not None else type(model).__name__,
        source.fingerprint if source is not None else "",
        recipe.to_dict(),
        recipe_hash(recipe),
        planned,
        before,
        predicted,
        warnings,
    )


def resolutions(model: PreTrainedModel, recipe: Recipe, *, strict: bool = False) -> list[Resolution]:
    """The sites of every step, on the tree as the steps before will leave it."""
    tree, found = _ExpectedTree(model), []
    for number, step in enumerate(recipe.steps, 1):
        found.append(tree.resolve(step.method, strict=strict))
        tree.follow(step_label(number, step.method), step.method, found[-1].sites)
    return found


def step_label(number: int, method: Compressor) -> str:
    """``step 2 (pruning.ffn)``."""
    return f"step {number} ({method.full_name()})"


def _check_needs(label: str, method: Compressor, recipe: Recipe) -> None:
    if "labels" in method.requirements() and recipe.data is None:
        raise DataError(
            "CK-D030", f"{label} trains on labels, and the recipe has no `data`", fix="add `data: {train: FILE, ...}`"
        )


def data_files(recipe: Recipe) -> dict[str, str]:
    """What a recipe reads besides models: key -> file or folder, or a hub's data set."""
    named = {"calibration": recipe.calibration.data if recipe.calibration.data != BUILTIN else None}
    if recipe.data is not None:
        named |= {"data.train": recipe.data.train, "data.dev": recipe.data.dev}
    if recipe.evaluate is not None:
        named |= {"evaluate": recipe.evaluate.data, "evaluate.train": recipe.evaluate.train}
    return {key: name for key, name in named.items() if name is not None}


def _check_files(recipe: Recipe) -> None:
    """Refuse a data file that isn't there now, and not after an hour of work."""
    for key, name in data_files(recipe).items():
        if not exists(name):
            raise DataError(
                "CK-D001", "there is no such data file", where=f"{key}: {name}", fix="check the path, from this folder"
            )
    if recipe.evaluate is not None and recipe.evaluate.data is not None:
        named(recipe.evaluate.task).look_for(recipe.evaluate.data)


class _ExpectedTree:
    """The candidate sites as they will be after the steps followed so far."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.taken: dict[str, str] = {}
        self.children: dict[str, list[Site]] = {}
        self.left: dict[str, float] = {}

    def resolve(self, method: Compressor, *, strict: bool) -> Resolution:
        sites: list[Site] = []
        for site in candidates(self.model, type(method).sites):
            if site.path in self.children:
                sites.extend(self.children[site.path])
            elif not ({site.path, *site.members} & set(self.taken)) or site.kind in ("block", "model"):
                sites.append(site)
        return resolve(self.model, method, available=sites, taken=self.taken, expected=self._made(), strict=strict)

    def saving(self, method: Compressor, sites: Sequence[Site]) -> int | None:
        """Bytes that ``method`` will save, or None where only data decide, or an earlier step makes the sites.

        Also None for a model without values: they decide the type of scales.

        A method counts on the model as it is; of a block that an earlier step halved, half of that is left to save.
        """
        if {site.path for site in sites} & self._made() or self.model.device.type == "meta":
            return None
        if any(site.kind in ("block", "model") for site in sites):
            return method.predicted_saving(self.model, sites)
        saved = 0
        for home, group in groupby(sites, key=lambda site: site.home):
            counted = method.predicted_saving(self.model, list(group))
            if counted is None:
                return None
            share = self.left.get(home, 1.0)
            saved += round(counted * share)
            self.left[home] = share * (1 - counted / max(1, size_of(self.model.get_submodule(home)).bytes))
        return saved

    def _made(self) -> set[str]:
        return {child.path for children in self.children.values() for child in children}

    def follow(self, label: str, method: Compressor, sites: Sequence[Site]) -> None:
        leaves = type(method).leaves
        if leaves is None:
            return
        for site in sites:
            self.taken[site.path] = label
            for children in self.children.values():
                children[:] = [child for child in children if child.path != site.path]
            for member in site.members:
                self.taken[member] = label
            self.children[site.path] = [
                Site(site.kind, f"{site.path}.{leaf}", block=site.block, part=site.part) for leaf in leaves
            ]


_ORDER = ("pruning", "sharing", "decomposition", "attention", "distillation", "quantization")


def order_warnings(recipe: Recipe) -> list[str]:
    """Orders that work but that the evidence speaks against."""
    found = []
    families = [type(step.method).family for step in recipe.steps]
    for index, family in enumerate(families):
        later = families[index + 1 :]
        if family == "quantization" and any(other in later for other in ("pruning", "decomposition", "sharing")):
            found.append(
                f"step {index + 1} quantizes before a structural step: errors compound the other way round"
                " (Harma et al., ICLR 2025, arXiv 2405.20935)"
            )
        healed = recipe.steps[index].recover is not None or "distillation" in later
        if family == "sharing" and not healed:
            found.append(
                f"step {index + 1} shares parameters and no recovery follows: layers of a trained model have little"
                " in common, expect a large loss; add `recover:` or a distillation step"
            )
    return found


def save_plan(made: Plan, path: Path) -> None:
    """Write ``made`` for a later ``apply``."""
    path.write_text(json.dumps(made.to_dict(), indent=1) + "\n")


def load_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        UsageError: CK-U011 if it can't be read, isn't JSON, or is of another version.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError("CK-U011", "the plan can't be read", where=str(path), why=str(error)) from error
    if not isinstance(data, dict):
        raise UsageError("CK-U011", "the plan is no JSON object", where=str(path))
    return Plan.from_dict(data)


def require_same(made: Plan, expected: Plan) -> None:
    """Refuse to run when the model or the recipe is no longer what the plan was made for.

    Raises:
        UsageError: CK-U017.
    """
    for what, now, then in (
        ("model", made.model_fingerprint, expected.model_fingerprint),
        ("recipe", made.recipe_hash, expected.recipe_hash),
    ):
        if now != then:
            raise UsageError(
                "CK-U017",
                f"the plan was made for another {what}",
                why=f"sha256 {then[:12]} then, {now[:12]} now",
                fix="make a new plan",
            )
