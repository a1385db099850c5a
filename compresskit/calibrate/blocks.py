"""Calibration block by block: the inputs that the already compressed part gives, without running it again.

A method with ``walk = "block"`` is called once a block. The blocks before it have been compressed by then, and their
output is all that the rest of the model sees of them. It is kept per batch, and handed to the model in their place:
embeddings, masks and position biases are still computed by the model itself, so that the result is that of a full run.

Of a model that is in memory part by part, what the embeddings give is kept too, and each block is entered while the one
before it is still there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from mmap import mmap
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.forward import (
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
from compresskit.core import anatomy
from compresskit.core.context import Batch
from compresskit.errors import InternalError, ModelError

_LARGE = 2**20
"""Bytes of a tensor that is kept in pages of its own."""


class BlockCalibration(Sequence[Batch]):
    """Batches that know how far the walk has come.

    It is a plain sequence of batches for whoever doesn't care; statistics of modules inside the entered block cost one
    run of that block. A stack that runs its blocks several times (ALBERT) is run in full each time.

    Attributes:
        calls: how often a run of the entered block calls the modules in it, as far as whoever ran it has noted that.

    Args:
        batches: padded batches of model inputs.
        scratch: a folder for what is kept, in files that nobody else sees; by default it stays in memory. It takes as
            much as a few times the hidden states of all tokens.
    """

    def __init__(self, batches: Sequence[Batch], scratch: Path | None = None) -> None:
        self._batches, self._scratch = list(batches), scratch
        self._before: dict[str, list[Any]] = {}
        self._forget()

    def _forget(self) -> None:
        self._order: tuple[str, ...] = ()
        self._current: str | None = None
        self._stored: dict[str, list[Any]] = {}
        self._parts: dict[str, list[Any]] = {}
        self.calls: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        """A batch; or a walk over some of the batches that has come as far as this one, and is entered no further."""
        if isinstance(index, int):
            return self._batches[index]
        part = copy(self)
        part._batches = self._batches[index]
        part._stored = {path: outputs[index] for path, outputs in self._stored.items()}
        part._before = {path: outputs[index] for path, outputs in self._before.items()}
        part._parts = {path: outputs[index] for path, outputs in self._parts.items()}
        return part

    @property
    def current(self) -> str | None:
        """Path of the block that was entered last."""
        return self._current

    def begin(self, model: PreTrainedModel) -> None:
        """Keep what the modules give that run before the first block; from now on they needn't have values.

        Raises:
            ModelError: CK-L066, one of them has no values now, or is called more than once.
        """
        body = anatomy.of(model)
        blocks = [block.path for block in body.blocks]
        self._before = {}
        kept: dict[str, list[Any]] = {path: [] for path in _outside(model, blocks)}
        before: dict[str, PreHook] = {path: _refuse_empty(path) for path in kept}
        after: dict[str, PostHook] = {
            path: _keeper(outputs, self._scratch, stop=False) for path, outputs in kept.items()
        }
        with evaluating(model), torch.no_grad(), hooked(model, {**before, blocks[0]: stop_here}, after):
            for batch in self._batches:
                run(model, batch)
        self._before = {path: outputs for path, outputs in kept.items() if outputs}
        for path, outputs in self._before.items():
            if len(outputs) != len(self._batches):
                raise _not_by_parts(path, "it is called more than once before the first block")

    def enter(self, model: PreTrainedModel, block_path: str) -> None:
        """Come to the block at ``block_path``; blocks before it are taken as they now are, and never run again.

        Blocks may be entered in the model's order only; going back starts anew.

        Raises:
            InternalError: CK-D014 for a path that is no block.
        """
        stacks = anatomy.of(model).stacks
        order = tuple(block.path for stack in stacks for block in stack.blocks)
        if block_path not in order:
            raise InternalError("CK-D014", "there is no such block to calibrate", where=block_path)
        if any(stack.repeats > 1 for stack in stacks):
            self._order, self._current = order, None
            return
        if order != self._order or (self._current and order.index(block_path) < order.index(self._current)):
            self._forget()
        self._order = order
        if block_path != self._current:
            self._advance(model, stacks, block_path)
            self._current, self._parts, self.calls = block_path, {}, {}

    def _advance(self, model: PreTrainedModel, stacks: Sequence[anatomy.Stack], target: str) -> None:
        """Store the outputs that stand for all blocks before ``target``: one a finished stack, one in its own."""
        needed: list[str] = []
        for stack in stacks:
            paths = [block.path for block in stack.blocks]
            if target in paths:
                needed += paths[max(0, paths.index(target) - 1) : paths.index(target)]
                break
            needed.append(paths[-1])
        missing = [path for path in needed if path not in self._stored]
        if missing:
            fresh: dict[str, list[Any]] = {path: [] for path in missing}
            spent = [outputs for path, outputs in self._stored.items() if path not in needed]
            spent += self._parts.values()
            hooks: dict[str, PostHook] = {
                path: _keeper(fresh[path], self._scratch, stop=path == missing[-1]) for path in missing
            }
            try:
                with evaluating(model), torch.no_grad(), self._skipping(model) as place, hooked(model, after=hooks):
                    for index, batch in enumerate(self._batches):
                        place(index)
                        run(model, batch)
                        for outputs in spent:
                            outputs[index] = None
            except BaseException:
                self._forget()
                raise
            self._stored.update(fresh)
            give_back_freed()
        own = target.rpartition(".")[0]
        for path in list(self._stored):
            if path not in needed:
                del self._stored[path]
            elif path.rpartition(".")[0] != own:
                self._stored[path] = [_without_biases(output) for output in self._stored[path]]

    def holds(self, paths: Sequence[str]) -> bool:
        """Whether all ``paths`` lie in the entered block."""
        return self._current is not None and all(path.startswith(f"{self._current}.") for path in paths)

    def settle(self, model: PreTrainedModel, done: Sequence[str], left: Sequence[str]) -> None:
        """Parts of the entered block that hold a module of ``done`` and none of ``left`` give the same from now on.

        What they give in the next run of the block is kept, and they aren't run again while it is entered, nor on the
        way to the next one: the attention, while the matrices behind it are compressed. A part whose output is larger
        than its input is run each time.
        """
        if self._current is None:
            return
        give_back_freed()
        for path in _children(model, self._current):
            if path not in self._parts and _any_inside(path, done) and not _any_inside(path, left):
                self._parts[path] = [None] * len(self._batches)

    def run(self, model: PreTrainedModel, index: int) -> Tensor | None:
        """Run the entered block, and nothing behind it, on batch ``index``; hooks inside it see its true inputs.

        Returns:
            The hidden states that the block gives, or None where a hook has stopped the run before.
        """
        if self._current is None:
            raise InternalError("CK-D014", "no block has been entered")
        given: list[Any] = []
        hooks: dict[str, PostHook] = {
            path: self._part_keeper(path, index) for path, outputs in self._parts.items() if not _whole(outputs)
        }
        hooks[self._current] = _keeper(given, None, stop=True)
        with self._skipping(model) as place, hooked(model, after=hooks):
            place(index)
            run(model, self._batches[index])
        return hidden_of(given[0]) if given else None

    def _part_keeper(self, path: str, index: int) -> PostHook:
        """Keeps what the part at ``path`` gives for batch ``index``, unless it is too large, or called once more."""

        def keep(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            outputs = self._parts.get(path)
            if outputs is None:
                return
            if outputs[index] is not None or _elements(output) > first_tensor(args, kwargs, path).numel():
                del self._parts[path]
            else:
                outputs[index] = _kept(output, self._scratch)

        return keep

    @contextmanager
    def _skipping(self, model: PreTrainedModel) -> Iterator[Any]:
        """Inside, blocks whose output is stored, and those before them in their stack, give it without running."""
        position = [0]
        patched = []

        def stand_in(outputs: list[Any]) -> Any:
            return lambda *_args, **_kwargs: outputs[position[0]]

        def place(index: int) -> None:
            position[0] = index

        try:
            for path, outputs in self._given():
                module = model.get_submodule(path)
                patched.append((module, vars(module).get("forward")))
                module.forward = stand_in(outputs)
            yield place
        finally:
            for module, own in reversed(patched):
                del module.forward
                if own is not None:
                    module.forward = own

    def _given(self) -> Iterator[tuple[str, list[Any]]]:
        """Paths of the modules that aren't run, each with what stands for its output, by batch."""
        yield from self._before.items()
        yield from ((path, outputs) for path, outputs in self._parts.items() if _whole(outputs))
        for path, outputs in self._stored.items():
            stack = path.rpartition(".")[0]
            for other in self._order[: self._order.index(path) + 1]:
                if other.rpartition(".")[0] == stack:
                    yield other, outputs


def entered(batches: Sequence[Batch], paths: Sequence[str]) -> BlockCalibration | None:
    """``batches`` as a walk, where it has entered a block that holds all ``paths``."""
    return batches if isinstance(batches, BlockCalibration) and batches.holds(paths) else None


def _outside(model: PreTrainedModel, blocks: Sequence[str]) -> list[str]:
    """The outermost modules with parameters that hold no block and lie in none."""
    found: list[str] = []
    for path, module in model.named_modules():
        around = path == "" or any(f"{block}.".startswith(f"{path}.") for block in blocks)
        inside = any(path.startswith(f"{other}.") for other in (*blocks, *found))
        if not around and not inside and next(module.parameters(), None) is not None:
            found.append(path)
    return found


def _children(model: PreTrainedModel, block: str) -> Iterator[str]:
    """Paths of the modules that make up ``block``, those in a list one by one."""
    for name, module in model.get_submodule(block).named_children():
        if isinstance(module, nn.ModuleList):
            yield from _children(model, f"{block}.{name}")
        else:
            yield f"{block}.{name}"


def _any_inside(path: str, others: Sequence[str]) -> bool:
    return any(f"{other}.".startswith(f"{path}.") for other in others)


def _whole(outputs: Sequence[Any]) -> bool:
    return all(output is not None for output in outputs)


def _elements(output: Any) -> int:
    if isinstance(output, tuple):
        return sum(_elements(part) for part in output)
    return output.numel() if isinstance(output, Tensor) else 0


def _refuse_empty(path: str) -> PreHook:
    def refuse(module: nn.Module, _args: Any, _kwargs: Any) -> None:
        if any(parameter.device.type == "meta" for parameter in module.parameters()):
            raise _not_by_parts(path, "it runs before the first block, and comes behind the blocks in the files")

    return refuse


def _not_by_parts(path: str, why: str) -> ModelError:
    return ModelError(
        "CK-L066",
        "what comes before the blocks can't be run by itself",
        where=path,
        why=why,
        fix="load the whole model, without low memory",
    )


def _keeper(outputs: list[Any], scratch: Path | None, *, stop: bool) -> PostHook:
    """Append what a module gives to ``outputs``."""

    def keep(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        outputs.append(_kept(output, scratch))
        if stop:
            stop_here()

    return keep


def _kept(output: Any, scratch: Path | None) -> Any:
    """``output`` with its tensors in memory of their own, or in mapped files.

    What is large has pages of its own, which go back to the system with it: among what a run takes and gives back it
    would leave holes that nothing fills. The system may write mapped files out and forget them, as memory needs it. A
    file has no name any more when this returns, and goes with its tensor.
    """
    if isinstance(output, tuple):
        return tuple(_kept(part, scratch) for part in output)
    if not isinstance(output, Tensor) or output.numel() == 0:
        return output
    if scratch is not None:
        with tempfile.NamedTemporaryFile(dir=scratch) as file:
            # Reserved now: a disk that is full when a mapped page is written ends the process.
            os.posix_fallocate(file.fileno(), 0, output.nbytes)
            kept = torch.from_file(file.name, shared=True, size=output.numel(), dtype=output.dtype)
    elif output.device.type == "cpu" and output.nbytes >= _LARGE:
        kept = torch.frombuffer(mmap(-1, output.nbytes), dtype=output.dtype)
    else:
        return output
    return kept.copy_(output.reshape(-1)).reshape(output.shape)


def _without_biases(output: Any) -> Any:
    """Of a finished stack only the hidden states matter; T5's position biases are (B, H, T, T) each."""
    if isinstance(output, Tensor):
        return output
    return (hidden_of(output), *(None for _ in output[1:]))
