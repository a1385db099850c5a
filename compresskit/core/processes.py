"""Several processes that train one model, as ``torchrun`` starts them, and ``accelerate launch --multi_gpu`` by it.

On CPUs ``accelerate launch`` starts one process, whatever number it is given: use ``torchrun`` there.

Every process runs the same program. The first one alone writes files; the others wait for it. A program that never
calls ``start`` is one process, whatever started it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from compresskit.core.device import usable
from compresskit.errors import DataError, ResourceError, UsageError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long one waits for another, which may be publishing a large model; the launcher ends all where one dies."""

_joined = False


def launched() -> int:
    """How many processes the launcher started: ``WORLD_SIZE``, or 1.

    Raises:
        UsageError: CK-U019, it is no such number.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise _no_others("it is no number of processes")
    return int(text)


def start(device: str = "cpu") -> None:
    """Join the other processes of this launch, if there are any.

    ``cuda`` becomes the processor of this process's number on its machine (``LOCAL_RANK``).

    Raises:
        UsageError: CK-U018, no such device; CK-U019, the others can't be found.
    """
    global _joined
    if _joined or launched() == 1:
        return
    graphics = usable(device).type == "cuda"
    if graphics:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not distributed.is_initialized():
        try:
            distributed.init_process_group("cpu:gloo,cuda:nccl" if graphics else "gloo", timeout=PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise _no_others(str(error).partition("\n")[0]) from error
    _joined = True


def _no_others(why: str) -> UsageError:
    return UsageError(
        "CK-U019",
        f"the other processes of this launch can't be joined: WORLD_SIZE is {os.environ.get('WORLD_SIZE', '')!r:.20}",
        why=why,
        fix="start it by torchrun; for one process unset WORLD_SIZE",
    )


def stop() -> None:
    """Leave the others, when all have come here."""
    global _joined
    if _joined:
        wait()
        distributed.destroy_process_group()
        _joined = False


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _joined else 1


def index() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if _joined else 0


def is_first() -> bool:
    """Whether this process writes."""
    return index() == 0


def wait() -> None:
    """Until all have come here."""
    if count() > 1:
        distributed.barrier()


def agree(value: T) -> T:
    """The first process's ``value``, in all."""
    if count() == 1:
        return value
    found: list[Any] = [value]
    distributed.broadcast_object_list(found, src=0)
    kept: T = found[0]
    return kept


def gather(value: T) -> list[T]:
    """Each process's ``value`` by its number, in the first one; an empty list in the others."""
    if count() == 1:
        return [value]
    found: list[Any] | None = [None] * count() if is_first() else None
    distributed.gather_object(value, found, dst=0)
    return found or []


def lead(action: Callable[[], T]) -> T | None:
    """Run ``action``, which must not meet the others, in the first process; the others wait and get None.

    Raises:
        ResourceError: CK-D091 in the others, where it failed.
    """
    if not is_first():
        if not agree(False):
            raise ResourceError("CK-D091", "the first process stopped", fix="its own message says why")
        return None
    try:
        found = action()
    except BaseException:
        agree(False)
        raise
    agree(True)
    return found


def average(parameters: Sequence[Tensor]) -> None:
    """Set the gradients of ``parameters`` to their means over the processes; none stays none where no one has any."""
    if count() == 1:
        return
    present = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    distributed.all_reduce(present, op=distributed.ReduceOp.MAX)
    chosen = [parameter for parameter, there in zip(parameters, present.tolist(), strict=True) if there]
    gradients = [torch.zeros_like(item) if item.grad is None else item.grad for item in chosen]
    for place in {(gradient.dtype, gradient.device) for gradient in gradients}:
        group = [number for number, item in enumerate(gradients) if (item.dtype, item.device) == place]
        flat = torch.cat([gradients[number].flatten() for number in group])
        distributed.all_reduce(flat)
        parts = (flat / count()).split([gradients[number].numel() for number in group])
        for number, part in zip(group, parts, strict=True):
            chosen[number].grad = part.view_as(chosen[number])


def mean(values: Tensor) -> Tensor:
    """The mean of ``values`` over the processes."""
    if count() == 1:
        return values
    found = values.detach().clone()
    distributed.all_reduce(found)
    return found / count()


def synchronise(model: nn.Module) -> None:
    """Give the first process's weights to all.

    Raises:
        DataError: CK-D090, if the models differ in more than their values.
    """
    if count() == 1:
        return
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    shape = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()]
    equal = torch.tensor([float(agree(shape) == shape)])
    distributed.all_reduce(equal, op=distributed.ReduceOp.MIN)
    if not equal.item():
        raise DataError(
            "CK-D090",
            "the processes hold models of different shapes",
            why="a step before chose otherwise in one of them",
            fix="run that step in one process, and train its result in several",
        )
    with torch.no_grad():
        for tensor in state.values():
            values = tensor.flatten().contiguous()
            distributed.broadcast(values.view(torch.uint8), src=0)
            tensor.copy_(values.view_as(tensor))
