"""Scales of an input moved into the norm that makes it, where that changes nothing else.

In a walk by block all of it happens in the entered block, which alone is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.blocks import entered
from compresskit.calibrate.forward import Attended, evaluating, first_tensor, hooked, run, stop_here
from compresskit.calibrate.outputs import outputs_of
from compresskit.core.anatomy import Rows
from compresskit.core.context import Batch
from compresskit.core.weights import WeightView

_TOLERANCE = 1e-4
"""Of a feature's largest value: what rounding in float32 may change."""
_FLOOR = 0.01
"""Of the median feature: smaller ones may change as much as one of this size."""


def norm_before(model: PreTrainedModel, path: str, features: int, batches: Sequence[Batch]) -> str | None:
    """Path of the norm whose very output the module at ``path`` reads, or None."""
    walk = entered(batches, [path])
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

    norms = {
        name: keep(name)
        for name, module in model.named_modules()
        if _is_norm(module, features) and (walk is None or walk.holds([name]))
    }
    with evaluating(model), torch.no_grad(), hooked(model, {path: look}, {**norms, path: stop_here}):  # type: ignore[dict-item]
        if walk is None:
            run(model, batches[0])
        else:
            walk.run(model, 0)
    return found[0] if len(found) == 1 else None


def _is_norm(module: nn.Module, features: int) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return (
        set(own) in ({"weight"}, {"weight", "bias"})
        and all(each.shape == (features,) for each in own.values())
        and not list(module.children())
    )


def _outcome(model: PreTrainedModel, paths: Sequence[str], batches: Sequence[Batch]) -> Tensor:
    """What the first of ``batches`` gives: the hidden states behind the entered block that holds all ``paths``, or the
    model's outputs.
    """
    walk = entered(batches, paths)
    if walk is None:
        return outputs_of(model, batches[0])
    block = cast(str, walk.current)
    return Attended(model).rows(block, cast(Tensor, walk.run(model, 0)), batches[0])


def alike(found: Tensor, expected: Tensor) -> bool:
    """Whether (…, D) values differ by rounding alone, feature by feature: some are thousands of times larger."""
    rows = expected.reshape(-1, expected.shape[-1]).float()
    size = rows.abs().amax(0)
    bound = _TOLERANCE * size.clamp(min=_FLOOR * float(size.median()))
    return bool(((found.reshape(rows.shape).float() - rows).abs() <= bound).all())


def fold(
    model: PreTrainedModel, norm_path: str, readers: Sequence[WeightView], scale: Tensor, batches: Sequence[Batch]
) -> bool:
    """Divide the norm's output by ``scale`` (I,) and multiply the columns of its ``readers`` by it.

    Whether it changes nothing is seen on the first of ``batches``: where something else reads the norm too (the
    residual of a post-norm block), or the norm multiplies by 1 + weight, all is put back and False returned.
    """
    norm = model.get_submodule(norm_path)
    before = [parameter.detach().clone() for parameter in norm.parameters(recurse=False)]
    weights = [reader.weight.detach().clone() for reader in readers]
    paths = [norm_path, *(reader.path for reader in readers)]
    with evaluating(model), torch.no_grad():
        expected = _outcome(model, paths, batches)
        for parameter in norm.parameters(recurse=False):
            parameter.div_(scale.to(parameter.dtype))
        for reader, weight in zip(readers, weights, strict=True):
            reader.assign(weight * scale.to(weight.dtype))
        if alike(_outcome(model, paths, batches), expected):
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
    batches: Sequence[Batch],
) -> bool:
    """Divide the ``rows`` of ``maker`` by ``scale``, multiply the columns of ``reader`` by
    ``columns`` (I,).

    For values and the projection that reads the heads' outputs, and for the linear half of a gated feed-forward
    network. Whether it changes nothing is seen as in ``fold``.

    Args:
        scale: one positive number for each of ``rows``; ``columns`` repeats it where several heads read one value.
    """
    weight, bias = maker.weight.detach().clone(), None if maker.bias is None else maker.bias.detach().clone()
    read = reader.weight.detach().clone()
    divisor = torch.ones(maker.out_features, dtype=torch.float32, device=weight.device)
    divisor[rows.start : rows.stop] = scale
    divisor = divisor.to(weight.dtype)
    with evaluating(model), torch.no_grad():
        expected = _outcome(model, [maker.path, reader.path], batches)
        maker.assign(weight / divisor[:, None], None if bias is None else bias / divisor)
        reader.assign(read * columns.to(read.dtype))
        if alike(_outcome(model, [maker.path, reader.path], batches), expected):
            return True
        maker.assign(weight, bias)
        reader.assign(read)
    return False
