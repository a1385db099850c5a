"""How much a model's result depends on the outputs of its matrices: second moments of gradients, without labels.

With s the scalar of ``saliency.probe``, which probes a random direction of the model's output, E[g gᵀ] of g = ∂s/∂y
says in which directions of y an error matters: the output half of a Kronecker-factored Fisher matrix (Martens & Grosse
2015).

Shapes: B batch, T tokens, N attended tokens, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.forward import Attended, PostHook, evaluating, hooked
from compresskit.calibrate.saliency import Scalar, probe
from compresskit.core.context import Batch
from compresskit.errors import DataError


def output_gradients(
    model: PreTrainedModel,
    paths: Sequence[str],
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    scalar: Scalar = probe,
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Tensor]:
    """E[g gᵀ], (O, O) float64 on the CPU, of the gradients at the outputs of the modules at ``paths``.

    The mean is over attended tokens. Modules that no gradient reaches (a pooler that the result doesn't use, whatever
    lies before a rounding without gradient) are left out.

    Args:
        paths: modules whose output is (…, O).
        scalar: what is derived; ``probe`` by default.

    Raises:
        DataError: CK-D003, if there are no batches.
    """
    sums, counts = _sums(model, paths, batches, _outer, seed, scalar, progress)
    return {path: sums[path] / counts[path] for path in paths if path in sums and bool((sums[path] != 0).any())}


def gradient_sizes(
    model: PreTrainedModel,
    paths: Sequence[str],
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    scalar: Scalar = probe,
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, float]:
    """E[g²], the mean over attended tokens and outputs: the trace of the Fisher matrix of the outputs, over its size.

    An error of the outputs with the mean square e moves the result by as much as E[g²] e, where it knows nothing of the
    gradients. It is 0 for modules that no gradient reaches. Arguments and errors are those of ``output_gradients``.
    """
    sums, counts = _sums(model, paths, batches, _squares, seed, scalar, progress)
    return {path: float(sums[path]) / counts[path] if path in sums else 0.0 for path in paths}


def weight_gradients(
    model: PreTrainedModel,
    weights: Mapping[str, nn.Parameter],
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    scalar: Scalar = probe,
) -> dict[str, float]:
    """Σ ‖∂s/∂W‖² over the batches, wherever W is used: the trace of its Fisher matrix, as s probes by chance.

    Hutchinson's estimator, as HAWQ-V2 has it (Dong et al., NeurIPS 2020, arXiv 1911.03852, eq. 6), of J Jᵀ.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = dict.fromkeys(weights, 0.0)
    with evaluating(model), _frozen(model), torch.enable_grad():
        for parameter in weights.values():
            parameter.requires_grad_()
        try:
            for batch in batches:
                value = scalar(model, batch, generator)
                if not value.requires_grad:  # a rounding without gradient lies behind
                    continue
                found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
                for path, gradient in zip(weights, found, strict=True):
                    sums[path] += 0.0 if gradient is None else float(gradient.double().square().sum())
        finally:
            for parameter in weights.values():
                parameter.requires_grad_(False)
    return sums


def _outer(rows: Tensor) -> Tensor:
    return (rows.T @ rows).double()


def _squares(rows: Tensor) -> Tensor:
    return rows.square().mean(1).double().sum()


def _sums(
    model: PreTrainedModel,
    paths: Sequence[str],
    batches: Sequence[Batch],
    reduce: Callable[[Tensor], Tensor],
    seed: int,
    scalar: Scalar,
    progress: Callable[[float, str], None] | None,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """``reduce`` of the gradients (N, O), added up, and the numbers of tokens."""
    if len(batches) == 0:
        raise DataError("CK-D003", "there are no calibration batches", fix="give calibration data")
    generator = torch.Generator().manual_seed(seed)
    attended = Attended(model)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    current: list[Batch] = [{}]

    def hook(path: str) -> PostHook:
        def add(gradient: Tensor) -> None:
            rows = attended.rows(path, gradient, current[0])
            rows = rows if rows.dtype == torch.float64 else rows.float()
            moment = reduce(rows).cpu()
            sums[path] = sums[path] + moment if path in sums else moment
            counts[path] = counts.get(path, 0) + rows.shape[0]

        def record(_module: object, _args: object, _kwargs: object, output: Tensor) -> Tensor | None:
            started = not output.requires_grad
            # Everything before is frozen: the graph begins here.
            tensor = output.detach().requires_grad_() if started else output
            tensor.register_hook(add)
            return tensor if started else None

        return record

    with (
        evaluating(model),
        _frozen(model),
        torch.enable_grad(),
        hooked(model, attended.routing(), {p: hook(p) for p in paths}),
    ):
        for index, batch in enumerate(batches):
            current[0] = batch
            value = scalar(model, batch, generator)
            if value.requires_grad:
                value.backward()
            if progress is not None:
                progress((index + 1) / len(batches), "sensitivity")
    return sums, counts


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient inside: only those of activations are wanted."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
