"""The teacher's outputs, computed once per text and kept on disk as memory-mapped float16 (token numbers as int32).

A student that sees a text several times, or training that is resumed, then costs no teacher pass; the teacher itself
can leave memory. Tokens of a text are kept without padding.

Shapes: n texts, T tokens of the longest of a batch, B batch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.batches import Row, collate
from compresskit.calibrate.forward import evaluating
from compresskit.calibrate.outputs import result_mask
from compresskit.core import processes
from compresskit.core.context import Batch
from compresskit.errors import DataError
from compresskit.train.objective import Objective

LIMIT = 4 * 10**9
"""Bytes that a cache may take; beyond, the teacher is run anew for every batch."""

HALF_LIMIT = 6e4
"""Values beyond this don't fit float16, which ends at 65,504; such a tensor is kept in float32."""

_BATCH = 32


class TeacherOutputs:
    """Gives the teacher's targets for texts by their numbers; made by ``teacher_outputs``."""

    def of(self, numbers: Sequence[int], batch: Batch) -> dict[str, Tensor]:
        """Targets of the texts ``numbers``, which ``batch`` holds in that order, on the CPU."""
        raise NotImplementedError


@dataclass
class LiveOutputs(TeacherOutputs):
    """Runs the teacher each time."""

    teacher: PreTrainedModel
    objective: Objective

    def of(self, numbers: Sequence[int], batch: Batch) -> dict[str, Tensor]:
        with evaluating(self.teacher):
            return self.objective.targets(self.teacher, batch)


@dataclass
class CachedOutputs(TeacherOutputs):
    """Reads them from disk."""

    arrays: Mapping[str, np.ndarray[Any, Any]]
    per_token: frozenset[str]
    starts: np.ndarray[Any, Any]

    def of(self, numbers: Sequence[int], batch: Batch) -> dict[str, Tensor]:
        found = {}
        for name, array in self.arrays.items():
            if name in self.per_token:
                rows = [self._read(array[self.starts[number] : self.starts[number + 1]]) for number in numbers]
                found[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            else:
                found[name] = self._read(array[np.asarray(numbers)])
        return found

    @staticmethod
    def _read(part: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.array(part, dtype=np.int64 if part.dtype == np.int32 else np.float32))


def teacher_outputs(
    teacher: PreTrainedModel,
    objective: Objective,
    rows: Sequence[Row],
    folder: Path,
    *,
    fill: int = 0,
    limit: int = LIMIT,
    progress: Callable[[float, str], None] | None = None,
) -> TeacherOutputs:
    """The outputs of ``teacher`` on ``rows``: cached in ``folder``, or live if that would take over ``limit`` bytes.

    A cache made before of the same teacher, texts and objective is taken as it is; one that was not finished is made
    anew.
    """
    first = _targets(teacher, objective, rows[:1], fill)
    tokens = _tokens(teacher, rows)
    size = sum(
        _bytes(value)
        * value[0].numel()
        * (sum(tokens) // tokens[0] if _by_token(objective, name, value) else len(rows))
        for name, value in first.items()
    )
    if processes.agree(size > min(limit, shutil.disk_usage(_existing(folder)).free // 2)):
        return LiveOutputs(teacher, objective)
    key = cache_key(teacher, objective, rows)
    place = folder / f"teacher-{key}"

    def make() -> None:
        if (place / "complete.json").is_file():
            return
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        with evaluating(teacher):
            _fill(teacher, objective, rows, tokens, place, fill, progress)

    processes.lead(make)
    return _open(place)


def _bytes(value: Tensor) -> int:
    return 2 if value.is_floating_point() else 4


def _existing(folder: Path) -> Path:
    return folder if folder.exists() or folder == folder.parent else _existing(folder.parent)


def _by_token(objective: Objective, name: str, value: Tensor) -> bool:
    return name in objective.per_token and value.dim() > 2


def _targets(teacher: PreTrainedModel, objective: Objective, rows: Sequence[Row], fill: int) -> dict[str, Tensor]:
    with evaluating(teacher):
        return objective.targets(teacher, collate(rows, fill))


def _tokens(teacher: PreTrainedModel, rows: Sequence[Row]) -> list[int]:
    """Length of each text's result."""
    double = bool(getattr(teacher.config, "is_encoder_decoder", False)) and "decoder_input_ids" in rows[0]
    return [len(row["decoder_input_ids" if double else "input_ids"]) for row in rows]


def _fill(
    teacher: PreTrainedModel,
    objective: Objective,
    rows: Sequence[Row],
    tokens: Sequence[int],
    place: Path,
    fill: int,
    progress: Callable[[float, str], None] | None,
) -> None:
    """Run the teacher over all rows, long ones first, and write each value at its place."""
    starts = np.concatenate([[0], np.cumsum(tokens)])
    order = sorted(range(len(rows)), key=lambda number: tokens[number], reverse=True)
    arrays: dict[str, np.memmap[Any, Any]] = {}
    per_token: set[str] = set()
    for begin in range(0, len(order), _BATCH):
        numbers = order[begin : begin + _BATCH]
        batch = collate([rows[number] for number in numbers], fill)
        found = objective.targets(teacher, batch)
        lengths = result_mask(teacher, batch).sum(1).tolist()
        for name, value in found.items():
            if name not in arrays:
                if _by_token(objective, name, value):
                    per_token.add(name)
                shape = (int(starts[-1]), *value.shape[2:]) if name in per_token else (len(rows), *value.shape[1:])
                arrays[name] = np.lib.format.open_memmap(place / f"{name}.npy", "w+", _kept_as(value), shape)
            whole = value.float() if value.is_floating_point() else value.int()
            _write(arrays[name], whole.cpu().numpy(), numbers, lengths, starts, name in per_token)
        if progress is not None:
            progress(min(1.0, (begin + _BATCH) / len(order)), "teacher")
    for array in arrays.values():
        array.flush()
    np.save(place / "starts.npy", starts)
    # Written last: a folder without it was left by a run that didn't finish.
    content = {"per_token": sorted(per_token), "names": sorted(arrays)}
    (place / "complete.json").write_text(json.dumps(content), encoding="utf-8")


def _kept_as(value: Tensor) -> type[np.generic]:
    if not value.is_floating_point():
        return np.int32
    return np.float16 if float(value.abs().max()) < HALF_LIMIT / 4 else np.float32


def _write(
    array: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    numbers: Sequence[int],
    lengths: Sequence[int],
    starts: np.ndarray[Any, Any],
    by_token: bool,
) -> None:
    if not np.isfinite(values).all() or (array.dtype == np.float16 and np.abs(values).max() > HALF_LIMIT):
        raise DataError(
            "CK-D024",
            "the teacher gives values that aren't finite, or too large for its cache",
            fix="load the teacher in float32, and check that its weights are whole",
        )
    if not by_token:
        array[np.asarray(numbers)] = values
        return
    for number, length, value in zip(numbers, lengths, values, strict=True):
        array[starts[number] : starts[number] + length] = value[:length]


def _open(place: Path) -> CachedOutputs:
    content = json.loads((place / "complete.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in content["names"]}
    return CachedOutputs(arrays, frozenset(content["per_token"]), np.load(place / "starts.npy", allow_pickle=False))


def cache_key(teacher: PreTrainedModel, objective: Objective, rows: Sequence[Row]) -> str:
    """A digest of the teacher's class, config and weights, of the objective, and of the tokens."""
    digest = hashlib.blake2b(objective.key().encode(), digest_size=16)
    digest.update(model_digest(teacher))
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def model_digest(model: PreTrainedModel) -> bytes:
    """A digest of the model's class, config and weights."""
    digest = hashlib.blake2b(f"{type(model).__name__} {model.config.to_json_string()}".encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
