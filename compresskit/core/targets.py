"""From globs to the ordered sites that a method changes, or one error that says what was found.

A pattern matches a site by the path of the site, of a module that contains it, or of a member matrix. Paths may be
written from the model's root or from its base model (``encoder.layer.0`` in a classifier too).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.core.compressor import Compressor
from compresskit.core.sites import Site
from compresskit.core.surgery import alias_groups
from compresskit.core.weights import PartView, WeightView, matrices
from compresskit.errors import RecipeError
from compresskit.nn.base import CompressedLayer
from compresskit.nn.recurrent import CELLS, Recurrent

_LACKS = {"experts": "it has no experts: pruning.ffn narrows its feed-forward networks"}
"""Why an architecture has no site of a kind, where its family says nothing else."""

_PATTERN = re.compile(r"[A-Za-z0-9_.*?\-\[\]!]{1,256}")


@dataclass(frozen=True)
class Resolution:
    """The sites of one step, and those that were left out: path -> reason."""

    sites: tuple[Site, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


def candidates(model: PreTrainedModel, kinds: frozenset[str]) -> list[Site]:
    """Every site of ``kinds`` in the model's order, also those outside the blocks."""
    body = anatomy.of(model)
    found: list[Site] = []
    for kind in sorted(kinds):
        found.extend(_OF_KIND[kind](model, body))
    return found


def _matrix_sites(model: PreTrainedModel, body: anatomy.Anatomy) -> list[Site]:
    blocks = [block.path for block in body.blocks]
    recurrent = [name for name, module in model.named_modules() if type(module) in CELLS or type(module) is Recurrent]
    banks = {f"{bank.path}.": bank for bank in body.experts}
    routers = tuple(f"{bank.router}." for bank in body.experts)
    leaders = {path: paths for paths in alias_groups(model) for path in paths}
    sites, seen = [], set()
    for item in matrices(model):
        if item.path in seen or f"{item.path}.".startswith(routers):
            continue  # what a router chooses would change at once; it is small
        followers = _followers(item, leaders)
        seen.update(followers)
        block = next((path for path in blocks if item.path.startswith(f"{path}.")), None)
        owner = next((path for path in recurrent if item.path.startswith(f"{path}.")), None)
        bank = next((bank for prefix, bank in banks.items() if item.path.startswith(prefix)), None)
        part = anatomy.Recurrence(owner) if owner is not None else bank
        sites.append(Site("matrix", item.path, tuple(followers), block=block, part=part))
    return sites


def _followers(item: WeightView, groups: Mapping[str, list[str]]) -> list[str]:
    """Other paths of the very same matrix; ``groups`` holds the paths of modules with the same parameters."""
    suffix = f".{item.name}" if isinstance(item, PartView) else ""
    return [f"{path}{suffix}" for path in groups.get(item.owner, ()) if path != item.owner]


def _embedding_sites(model: PreTrainedModel, body: anatomy.Anatomy) -> list[Site]:
    plain = {item.path for item in matrices(model, tables=True)}
    return [Site("embedding", table.path, table.tied, part=table) for table in body.embeddings if table.path in plain]


def _attention_sites(model: PreTrainedModel, body: anatomy.Anatomy) -> list[Site]:
    return [
        Site("attention", part.path, part.members, part.group, block.path, part)
        for block in body.blocks
        for part in block.attentions
    ]


def _ffn_sites(model: PreTrainedModel, body: anatomy.Anatomy) -> list[Site]:
    return [
        Site("ffn", part.path, part.members, None, block.path, part) for block in body.blocks for part in block.ffns
    ]


def _block_sites(model: PreTrainedModel, body: anatomy.Anatomy) -> list[Site]:
    return [Site("block", block.path, (), None, block.path, block) for block in body.blocks]


def _model_site(model: PreTrainedModel, body: anatomy.Anatomy) -> list[Site]:
    return [Site("model", "", part=body)]


def _expert_sites(model: PreTrainedModel, body: anatomy.Anatomy) -> list[Site]:
    return [
        Site("experts", bank.path, (bank.router,), None, block.path, bank)
        for block in body.blocks
        for bank in block.experts
    ]


def _no_sites(model: PreTrainedModel, body: anatomy.Anatomy) -> list[Site]:
    return []


_OF_KIND = {
    "matrix": _matrix_sites,
    "embedding": _embedding_sites,
    "attention": _attention_sites,
    "ffn": _ffn_sites,
    "block": _block_sites,
    "model": _model_site,
    "experts": _expert_sites,
    "rnn": _no_sites,
}


def resolve(
    model: PreTrainedModel,
    method: Compressor,
    *,
    available: Sequence[Site] | None = None,
    taken: Mapping[str, str] | None = None,
    expected: Collection[str] = (),
    strict: bool = False,
) -> Resolution:
    """The sites that ``method`` will change.

    Args:
        available: the candidate sites; by default read off ``model``.
        taken: module path -> the earlier step that replaced it, for the message.
        expected: paths among ``available`` that an earlier step has yet to make; the method isn't asked about them.
        strict: make every skipped site an error.

    Raises:
        RecipeError: CK-T010 a target matches nothing; CK-T011 an ignore matches nothing; CK-T012 all targets are
            ignored; CK-T013 a group is split; CK-T014 a site can't be done; CK-T015 a bad pattern.
    """
    taken = taken or {}
    sites = list(candidates(model, type(method).sites) if available is None else available)
    body = anatomy.of(model)
    prefix = body.prefix
    _refuse_lacking(model, method, sites, body)
    for pattern in (*method.targets, *method.ignore):
        if not _PATTERN.fullmatch(pattern):
            raise RecipeError(
                "CK-T015",
                f"{pattern!r} is not a pattern",
                why="patterns are module paths with * ? and [..], at most 256 characters",
            )
    chosen = _select(model, method, sites, prefix, taken)
    chosen = _without_ignored(method, chosen, sites, prefix)
    _refuse_split_groups(chosen, sites)
    return _without_refused(model, method, chosen, prefix, expected, strict)


def _refuse_lacking(model: PreTrainedModel, method: Compressor, sites: Sequence[Site], body: anatomy.Anatomy) -> None:
    """Raise CK-T014 if there is no site because the architecture has none of its kind, by what its family says."""
    lacks = _LACKS | dict(body.lacks)
    reasons = [lacks[kind] for kind in sorted(type(method).sites) if kind in lacks]
    if reasons and not sites:
        raise RecipeError(
            "CK-T014",
            f"{method.full_name()} can't be applied to this {model.config.model_type} model",
            why=reasons[0],
            fix="choose another method",
        )


def matching(pattern: str, site: Site, prefix: str) -> bool:
    """Whether ``pattern`` names ``site``."""
    names = [site.path, *site.members]
    return any(_matches_name(pattern, name, prefix) for name in names)


def _matches_name(pattern: str, name: str, prefix: str) -> bool:
    variants = [name] + ([name.removeprefix(prefix)] if prefix and name.startswith(prefix) else [])
    for variant in variants:
        parts = variant.split(".")
        if any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1)):
            return True
    return False


def _exact(patterns: Sequence[str], site: Site, prefix: str) -> bool:
    return any(
        pattern in (name, name.removeprefix(prefix)) for pattern in patterns for name in (site.path, *site.members)
    )


def _select(
    model: PreTrainedModel, method: Compressor, sites: list[Site], prefix: str, taken: Mapping[str, str]
) -> list[Site]:
    if not method.targets:
        chosen = [site for site in sites if site.kind in ("model", "embedding") or _is_inside(site)]
        if not chosen:
            raise _nothing_left(model, method, taken)
        return chosen
    picked: dict[int, Site] = {}
    for pattern in method.targets:
        hits = [(index, site) for index, site in enumerate(sites) if matching(pattern, site, prefix)]
        if not hits:
            raise _no_match("CK-T010", "target", pattern, method, sites, prefix, taken)
        picked.update(hits)
    return [picked[index] for index in sorted(picked)]


def _is_inside(site: Site) -> bool:
    """Whether the site belongs to a block, or to an LSTM or GRU: not a head, not a pooler."""
    return site.block is not None or isinstance(site.part, anatomy.Recurrence)


def _nothing_left(model: PreTrainedModel, method: Compressor, taken: Mapping[str, str]) -> RecipeError:
    kinds = " or ".join(sorted(type(method).sites))
    what = f"{method.full_name()} finds no {kinds} site left in the blocks"
    layers = sorted({type(module).kind for module in model.modules() if isinstance(module, CompressedLayer)})
    if taken:
        steps = ", ".join(sorted(set(taken.values())))
        why = f"{len(taken)} modules were taken by {steps}"
        fix = "put this step before the one that took them, or remove it"
    elif layers:
        why = f"the model is compressed already: it has {', '.join(layers)} layers"
        fix = "start from the model that it was made from, with all steps in one recipe"
    else:
        why, fix = "the model has none", ""
    return RecipeError("CK-T010", what, why=why, fix=fix)


def _no_match(
    code: str,
    what: str,
    pattern: str,
    method: Compressor,
    sites: list[Site],
    prefix: str,
    taken: Mapping[str, str],
) -> RecipeError:
    gone = [f"{path} ({step})" for path, step in taken.items() if _matches_name(pattern, path, prefix)]
    names = list(dict.fromkeys(name for site in sites for name in (site.path, *site.members)))
    close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.0)
    return RecipeError(
        code,
        f"the {what} {pattern!r} of {method.full_name()} matches none of {len(names)} modules",
        why=f"an earlier step took {', '.join(gone[:3])}" if gone else "",
        fix=f"closest: {', '.join(close)}" if close else "",
    )


def _without_ignored(method: Compressor, chosen: list[Site], sites: list[Site], prefix: str) -> list[Site]:
    for pattern in method.ignore:
        if not any(matching(pattern, site, prefix) for site in sites):
            raise _no_match("CK-T011", "ignore", pattern, method, sites, prefix, {})
    left = [site for site in chosen if not any(matching(pattern, site, prefix) for pattern in method.ignore)]
    if not left:
        raise RecipeError(
            "CK-T012", f"every target of {method.full_name()} is ignored", fix="loosen `ignore` or drop the step"
        )
    return left


def _refuse_split_groups(chosen: list[Site], sites: list[Site]) -> None:
    groups = {site.group for site in chosen if site.group is not None}
    for group in sorted(groups):
        missing = [site.path for site in sites if site.group == group and site not in chosen]
        if missing:
            raise RecipeError(
                "CK-T013",
                f"the {group} must change together, and the patterns leave out {missing[0]}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
                fix="take the whole group, or none of it",
            )


def _without_refused(
    model: PreTrainedModel,
    method: Compressor,
    chosen: list[Site],
    prefix: str,
    expected: Collection[str],
    strict: bool,
) -> Resolution:
    there = [site for site in chosen if site.path not in expected]
    reasons = dict(method.refuse(model, there)) if there else {}
    lost_groups = {site.group: reason for site, reason in reasons.items() if site.group is not None}
    for site in chosen:
        if site.group in lost_groups and site not in reasons:
            reasons[site] = f"{lost_groups[site.group]} (the {site.group} change together)"
    left = tuple(site for site in chosen if site not in reasons)
    named = [site for site in reasons if _exact(method.targets, site, prefix)]
    if reasons and (strict or named or not left):
        site = named[0] if named else next(iter(reasons))
        raise RecipeError(
            "CK-T014",
            f"{method.full_name()} can't be applied to "
            + (site.path or f"this {model.config.model_type} model")
            + (f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""),
            where=site.path,
            why=reasons[site],
            fix="" if left and not strict else "choose other targets or another method",
        )
    return Resolution(left, {site.path: reason for site, reason in reasons.items()})
