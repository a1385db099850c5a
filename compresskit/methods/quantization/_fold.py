"""Scales of an input moved into the norm that makes it, where that changes nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.forward import evaluating, first_tensor, hooked, run, stop_here
from compresskit.calibrate.outputs import outputs_of
from compresskit.core.anatomy import Rows
from compresskit.core.context import Batch
from compresskit.core.weights import WeightView

_TOLERANCE = 1e-4
"""Of the largest output: what rounding in float32 may change."""


def norm_before(model: PreTrainedModel, path: str, features: int, batch: Batch) -> str | None:
    """Path of the norm whose very output the module at ``path`` reads, or None."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: list[str] = []

    def keep(name: str) -> object:
        def hook(_module: object, _args: object, _kwargs: object, output: object) -> None:
            if isinstance(output, Tensor):
                made[id(output)] = (name, output)

        return hook

    def look(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        source = made.get(id(first_tensor(args, kwargs, path)))
        if source is not None:
            found.append(source[0])

    norms = {name: keep(name) for name, module in model.named_modules() if _is_norm(module, features)}
    with evaluating(model), torch.no_grad(), hooked(model, {path: look}, {**norms, path: stop_here}):  # type: ignore[dict-item]
        run(model, batch)
    return found[0] if len(found) == 1 else None


def _is_norm(module: nn.Module, features: int) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return (
        set(own) in ({"weight"}, {"weight", "bias"})
        and all(each.shape == (features,) for each in own.values())
        and not list(module.children())
    )


def fold(
    model: PreTrainedModel, norm_path: str, readers: Sequence[WeightView], scale: Tensor, batch: Mapping[str, Tensor]
) -> bool:
    """Divide the norm's output by ``scale`` (I,) and multiply the columns of its ``readers`` by it.

    Whether it changes nothing is seen on ``batch``: where something else reads the norm too (the residual of a
    post-norm block), or the norm multiplies by 1 + weight, all is put back and False returned.
    """
    norm = model.get_submodule(norm_path)
    before = [parameter.detach().clone() for parameter in norm.parameters(recurse=False)]
    weights = [reader.weight.detach().clone() for reader in readers]
    with evaluating(model), torch.no_grad():
        expected = outputs_of(model, batch)
        for parameter in norm.parameters(recurse=False):
            parameter.div_(scale.to(parameter.dtype))
        for reader, weight in zip(readers, weights, strict=True):
            reader.assign(weight * scale.to(weight.dtype))
        difference = (outputs_of(model, batch) - expected).abs().max()
        if bool(difference <= _TOLERANCE * expected.abs().max()):
            return True
        for parameter, value in zip(norm.parameters(recurse=False), before, strict=True):
            parameter.copy_(value)
        for reader, weight in zip(readers, weights, strict=True):
            reader.assign(weight)
    return False


def fold_rows(
    model: PreTrainedModel,
    maker: WeightView,
    rows: Rows,
    reader: WeightView,
    scale: Tensor,
    columns: Tensor,
    batch: Batch,
) -> bool:
    """Divide the ``rows`` of ``maker`` by ``scale``, multiply the columns of ``reader`` by
    ``columns`` (I,).

    For values and the projection that reads the heads' outputs, and for the linear half of a gated feed-forward
    network. Whether it changes nothing is seen on ``batch``, as in ``fold``.

    Args:
        scale: one positive number for each of ``rows``; ``columns`` repeats it where several heads read one value.
    """
    weight, bias = maker.weight.detach().clone(), None if maker.bias is None else maker.bias.detach().clone()
    read = reader.weight.detach().clone()
    divisor = torch.ones(maker.out_features, dtype=torch.float32, device=weight.device)
    divisor[rows.start : rows.stop] = scale
    divisor = divisor.to(weight.dtype)
    with evaluating(model), torch.no_grad():
        expected = outputs_of(model, batch)
        maker.assign(weight / divisor[:, None], None if bias is None else bias / divisor)
        reader.assign(read * columns.to(read.dtype))
        difference = (outputs_of(model, batch) - expected).abs().max()
        if bool(difference <= _TOLERANCE * expected.abs().max()):
            return True
        maker.assign(weight, bias)
        reader.assign(read)
    return False
