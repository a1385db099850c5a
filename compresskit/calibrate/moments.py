"""What a model's matrices see: moments of their inputs over attended tokens, gathered in one pass.

The statistic is apart from the solver: pruning, whitening and smoothing are pure functions of a weight and of what is
gathered here. ``numerics/moments.py`` holds the plain loop that this is tested against.

Shapes: B batch, T tokens, N attended tokens, I input features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.blocks import entered
from compresskit.calibrate.forward import (
    Attended,
    PostHook,
    PreHook,
    evaluating,
    first_tensor,
    hidden_of,
    hooked,
    run,
    stop_here,
)
from compresskit.checkpoint.memory import give_back_freed
from compresskit.core.context import Batch
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.errors import DataError, InternalError

Progress = Callable[[float, str], None]

_PANEL = 256
"""Rows of a Gram matrix that are computed at once."""


@dataclass
class Moments:
    """Sums over the N attended tokens x of one module's input, on the CPU in float64.

    Args:
        gram: Σ x xᵀ, (I, I), or None where it wasn't asked for.
        total: Σ x, (I,).
        square_sum: Σ x², (I,).
        abs_sum: Σ |x|, (I,).
        abs_max: max |x|, (I,).
        count: N.
    """

    gram: Tensor | None
    total: Tensor
    square_sum: Tensor
    abs_sum: Tensor
    abs_max: Tensor
    count: int = 0

    @property
    def mean(self) -> Tensor:
        """Mean of x, (I,)."""
        return self.total / self.count

    @property
    def abs_mean(self) -> Tensor:
        """Mean of |x|, (I,)."""
        return self.abs_sum / self.count

    @property
    def rms(self) -> Tensor:
        """Root mean square of x, (I,)."""
        return (self.square_sum / self.count).sqrt()

    @classmethod
    def empty(cls, features: int, *, gram: bool) -> Moments:
        """No token yet."""
        total, square_sum, abs_sum, abs_max = torch.zeros(4, features, dtype=torch.float64)
        square = torch.zeros(features, features, dtype=torch.float64) if gram else None
        return cls(square, total, square_sum, abs_sum, abs_max)

    @classmethod
    def together(cls, parts: Sequence[Moments]) -> Moments:
        """Of the inputs of all ``parts``; a single one as it is."""
        if len(parts) == 1:
            return parts[0]
        grams = [part.gram for part in parts if part.gram is not None]
        return cls(
            torch.stack(grams).sum(0) if len(grams) == len(parts) else None,
            torch.stack([part.total for part in parts]).sum(0),
            torch.stack([part.square_sum for part in parts]).sum(0),
            torch.stack([part.abs_sum for part in parts]).sum(0),
            torch.stack([part.abs_max for part in parts]).amax(0),
            sum(part.count for part in parts),
        )

    def add(self, rows: Tensor) -> None:
        """Count the tokens ``rows`` (N, I) in.

        Products are taken in float32 (float64 inputs: float64) over one batch, sums over batches in float64. Of the
        symmetric Gram matrix only what lies right of the diagonal is computed, some rows at a time.
        """
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        if rows.shape[0] == 0:
            return
        if self.gram is not None:
            for start in range(0, rows.shape[1], _PANEL):
                panel = slice(start, start + _PANEL)
                self.gram[panel, start:] += (rows[:, panel].T @ rows[:, start:]).double().cpu()
                self.gram[start + _PANEL :, panel] = self.gram[panel, start + _PANEL :].T
        for piece in rows.split(_PANEL):  # a sum in float64 copies what it sums
            magnitude = piece.abs()
            self.total += piece.sum(0, dtype=torch.float64).cpu()
            self.square_sum += piece.square().sum(0, dtype=torch.float64).cpu()
            self.abs_sum += magnitude.sum(0, dtype=torch.float64).cpu()
            self.abs_max = torch.maximum(self.abs_max, magnitude.amax(0).double().cpu())
        self.count += rows.shape[0]


class _Recorder:
    """Gathers moments by path; modules called with the very same tensor (queries, keys, values) share the work."""

    def __init__(self, model: PreTrainedModel, gram: bool) -> None:
        self.attended, self.gram = Attended(model), gram
        self.own: dict[str, Moments] = {}
        self.followed: dict[str, str] = {}
        self.batch: Batch = {}
        self.recent: tuple[str, Tensor] | None = None

    def start(self, batch: Batch) -> None:
        self.batch, self.recent = batch, None

    def hook(self, path: str) -> PreHook:
        def record(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            source = first_tensor(args, kwargs, path)
            if self.recent is not None and self.recent[1] is source and self._same_rows(self.recent[0], path):
                self._follow(path, self.recent[0])
                return
            if path in self.followed:
                raise _unsteady(path)
            self.recent = (path, source)
            if path not in self.own:
                self.own[path] = Moments.empty(source.shape[-1], gram=self.gram)
            self.own[path].add(self.attended.rows(path, source, self.batch))

        return record

    def _same_rows(self, one: str, other: str) -> bool:
        return self.attended.reads_decoder(one) == self.attended.reads_decoder(other)

    def _follow(self, path: str, leader: str) -> None:
        if path in self.own or self.followed.setdefault(path, leader) != leader:
            raise _unsteady(path)

    def result(self, paths: Sequence[str]) -> dict[str, Moments]:
        return {path: self.own[self.followed.get(path, path)] for path in paths}


def _unsteady(path: str) -> InternalError:
    return InternalError(
        "CK-D013",
        "the module shares its input with another module in some calls only",
        where=path,
        fix="gather its statistics in a call of their own",
    )


def input_moments(
    model: PreTrainedModel,
    paths: Sequence[str],
    batches: Sequence[Batch],
    *,
    gram: bool = True,
    progress: Progress | None = None,
    stop_after: str | None = None,
    unrouted: bool = False,
) -> dict[str, Moments]:
    """Moments of the inputs of the modules at ``paths``, over attended tokens only, in one pass.

    Modules that are called with the same tensor get the same ``Moments`` object: don't write into it.

    Args:
        paths: modules whose first argument is (…, I): Linear, Conv1D, or a layer that replaced one.
        batches: padded batches; a ``BlockCalibration`` runs only its block where all paths lie in it.
        gram: gather Σ x xᵀ too.
        progress: told the fraction of batches done.
        stop_after: path of a module after which the forward pass ends; all of ``paths`` must run before its end.
        unrouted: experts that no token is routed to get moments with the count 0, and are no error.

    Raises:
        DataError: CK-D011 for modules that no batch reaches, CK-D012 for inputs that aren't finite.
    """
    wanted = list(dict.fromkeys(paths))
    recorder = _Recorder(model, gram)
    before: dict[str, PreHook] = {path: recorder.hook(path) for path in wanted}
    _passes(model, batches, before, recorder.start, progress, stop_after, wanted, recorder.attended.routing())
    reached = recorder.own.keys() | recorder.followed.keys()
    missing = [path for path in wanted if path not in reached or recorder.result([path])[path].count == 0]
    refuse_unreached([path for path in missing if not (unrouted and recorder.attended.expert(path))])
    for path in missing:
        recorder.own[path] = Moments.empty(view(model, path).in_features, gram=gram)
    result = recorder.result(wanted)
    for path, moments in result.items():
        if not bool(torch.isfinite(moments.square_sum).all()):
            raise DataError(
                "CK-D012",
                "the calibration data give inputs that aren't finite",
                where=path,
                fix="look for NaN or infinite weights before this module, or compute in float32",
            )
    return result


class _End:
    """Ends each pass behind the last call that any hook wants to see.

    Which one that is tells the first pass that reaches all modules; it and passes before it are run in full.

    Args:
        paths: of the modules.
        known: calls of modules in a pass, as far as earlier passes told; what these passes tell is added.
    """

    def __init__(self, paths: Sequence[str], known: dict[str, int]) -> None:
        self.wanted, self.known = frozenset(paths), known
        self.calls: Counter[str] = Counter()
        self.complete: Counter[str] | None = None
        if self.wanted <= known.keys():
            self.complete = Counter({path: known[path] for path in self.wanted})

    def start(self) -> None:
        """A pass begins."""
        self.calls = Counter()

    def done(self) -> None:
        """A pass has ended."""
        if self.complete is None and self.wanted <= self.calls.keys():
            self.complete = self.calls
            self.known.update(self.calls)

    def behind(self, path: str, hook: PreHook) -> PreHook:
        def called(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            hook(module, args, kwargs)
            self.calls[path] += 1
            if self.calls == self.complete:
                stop_here()

        return called


def _passes(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    before: dict[str, PreHook],
    start: Callable[[Batch], None],
    progress: Progress | None,
    stop_after: str | None,
    paths: Sequence[str],
    routing: dict[str, PreHook],
) -> None:
    if len(batches) == 0:
        raise DataError("CK-D003", "there are no calibration batches", fix="give calibration data")
    after: dict[str, PostHook] = {stop_after: stop_here} if stop_after is not None else {}
    walk = entered(batches, paths)
    end = _End(paths, {} if walk is None else walk.calls)
    ending = {path: end.behind(path, hook) for path, hook in before.items()}
    with evaluating(model), torch.no_grad(), hooked(model, routing), hooked(model, ending, after):
        for index in range(len(batches)):
            end.start()
            start(batches[index])
            if walk is not None:
                walk.run(model, index)
            else:
                run(model, batches[index])
            end.done()
            if progress is not None:
                progress((index + 1) / len(batches), "calibration")
    if walk is not None:
        give_back_freed()


def refuse_unreached(paths: Sequence[str]) -> None:
    """Raise CK-D011 if ``paths``, modules that no batch reached, is not empty."""
    if paths:
        raise DataError(
            "CK-D011",
            f"the calibration data never reach {len(paths)} module{'s' if len(paths) > 1 else ''}: "
            + ", ".join(paths[:5])
            + (" …" if len(paths) > 5 else ""),
            why="the model doesn't call them, or no token is routed there",
            fix="leave them out with `ignore`, or calibrate on other data",
        )


def input_samples(
    model: PreTrainedModel,
    paths: Sequence[str],
    batches: Sequence[Batch],
    limit: int,
    *,
    stop_after: str | None = None,
) -> dict[str, Tensor]:
    """Attended input rows of the modules at ``paths``, (at most ``limit``, I) each, in the model's type on the CPU.

    Rows are taken evenly from every batch, so that two matrices with the same input get the same rows.

    Raises:
        DataError: CK-D011 for modules that no batch reaches.
    """
    attended = Attended(model)
    share = max(1, -(-limit // max(1, len(batches))))
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    current: list[Batch] = [{}]

    def hook(path: str) -> PreHook:
        def record(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            rows = attended.rows(path, first_tensor(args, kwargs, path).detach(), current[0])
            step = max(1, rows.shape[0] // share)
            found[path].append(rows[::step][:share].cpu().clone())

        return record

    def start(batch: Batch) -> None:
        current[0] = batch

    hooks = {path: hook(path) for path in found}
    _passes(model, batches, hooks, start, None, stop_after, list(found), attended.routing())
    refuse_unreached([path for path, rows in found.items() if not rows])
    return {path: torch.cat(rows)[:limit] for path, rows in found.items()}


def site_moments(model: PreTrainedModel, site: Site, batches: Sequence[Batch], *, gram: bool = True) -> Moments:
    """Moments of all that the matrix of ``site`` reads, at each of the places that share its parameters.

    Of an expert that no token is routed to: moments with the count 0.
    """
    return sites_moments(model, [site], batches, gram=gram)[site.path]


def sites_moments(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch], *, gram: bool = True
) -> dict[str, Moments]:
    """``site_moments`` of several sites by path, in one pass."""
    paths = [path for site in sites for path in (site.path, *site.members)]
    found = input_moments(model, paths, batches, gram=gram, unrouted=True)
    return {
        site.path: Moments.together(
            list({id(found[path]): found[path] for path in (site.path, *site.members)}.values())
        )
        for site in sites
    }


def site_samples(model: PreTrainedModel, site: Site, batches: Sequence[Batch], limit: int) -> Tensor:
    """Rows (at most ``limit``, I) of all that the matrix of ``site`` reads, from each place alike, batch by batch."""
    paths = [site.path, *site.members]
    found = input_samples(model, paths, batches, max(1, limit // len(paths)))
    if len(paths) == 1:
        return found[site.path]
    # Row by row in turns, so that the first half holds early batches of every place.
    least = min(len(rows) for rows in found.values())
    return torch.stack([rows[:least] for rows in found.values()], 1).flatten(0, 1)


def block_similarities(
    model: PreTrainedModel, block_paths: Sequence[str], batches: Sequence[Batch], *, progress: Progress | None = None
) -> dict[str, float]:
    """Block influence of each block: 1 - E[cos(x, y)] of its input x and output y over attended tokens.

    Near 0: the block hardly turns its input, and can go. Source: ShortGPT (Men et al. 2024), eq. 1. A block that is
    run several times (ALBERT) gets the mean over its runs.

    Raises:
        DataError: CK-D011 for blocks that no batch reaches.
    """
    attended = Attended(model)
    sums = {path: [0.0, 0] for path in block_paths}
    current: list[Batch] = [{}]

    def hook(path: str) -> PostHook:
        def record(_module: object, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            entering = attended.rows(path, first_tensor(args, kwargs, path), current[0]).double()
            leaving = attended.rows(path, hidden_of(output), current[0]).double()
            cosines = torch.nn.functional.cosine_similarity(entering, leaving, dim=-1)
            sums[path][0] += float(cosines.sum())
            sums[path][1] += cosines.numel()

        return record

    if len(batches) == 0:
        raise DataError("CK-D003", "there are no calibration batches", fix="give calibration data")
    with evaluating(model), torch.no_grad(), hooked(model, after={path: hook(path) for path in sums}):
        for index, batch in enumerate(batches):
            current[0] = batch
            run(model, batch)
            if progress is not None:
                progress((index + 1) / len(batches), "block influence")
    refuse_unreached([path for path, (_, count) in sums.items() if count == 0])
    return {path: 1.0 - total / count for path, (total, count) in sums.items()}
