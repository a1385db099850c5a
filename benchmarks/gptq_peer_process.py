"""A process that compresses with llm-compressor's GPTQ; ``benchmarks.gptq_peers`` starts it in the peer's Python.

It imports nothing of this project. One job a line comes in on stdin, one answer a line goes out on stdout, both JSON.
A job: ``model`` (folder), ``ids`` (JSON file, sequences of equal length), ``batch``, ``bits``, ``groups`` (path of a
matrix -> columns that share a scale, None for a row), ``settings`` (``observer``, ``actorder``, …) and ``output``, to
which the dequantized matrices are written. The answer: seconds of one compression of a model that is in memory, from
its ready batches to its rounded weights, without loading, packing and saving.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Job = dict[str, Any]
Timed = Callable[[], dict[str, torch.Tensor]]


def serve(prepare: Callable[[Job], Timed]) -> None:
    """Answer the jobs on stdin; ``prepare`` loads what a job needs, what it returns is timed and gives the matrices.

    Whatever else is printed goes to stderr.
    """
    from safetensors.torch import save_file

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        compress = prepare(job)
        wall, cpu = time.perf_counter(), time.process_time()
        weights = compress()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        save_file({path: weight.float().contiguous() for path, weight in weights.items()}, job["output"])
        answers.write(json.dumps({"cpu_seconds": round(cpu, 4), "wall_seconds": round(wall, 4)}) + "\n")
        answers.flush()


def batches(job: Job) -> list[dict[str, torch.Tensor]]:
    """The calibration of a job; nothing is padded."""
    ids = torch.tensor(json.loads(Path(job["ids"]).read_text(encoding="utf-8")))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(job["batch"])]


def config_groups(bits: int, groups: dict[str, int | None], observer: str) -> dict[str, Any]:
    """llm-compressor's ``config_groups``: zero points everywhere, as many columns a scale as ``groups`` says."""
    by_size: dict[int | None, list[str]] = {}
    for path, size in groups.items():
        by_size.setdefault(size, []).append(path)
    found = {}
    for size, paths in by_size.items():
        shared = {"strategy": "channel"} if size is None else {"strategy": "group", "group_size": size}
        weights = {"num_bits": bits, "type": "int", "symmetric": False, "observer": observer, **shared}
        found[f"of_{size or 'a_row'}"] = {"targets": paths, "weights": weights}
    return found


def with_linears(model: torch.nn.Module) -> torch.nn.Module:
    """``model`` with an ``nn.Linear`` in the place of every ``Conv1D``, which the peer doesn't quantize."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = torch.nn.Linear(*module.weight.shape)
            linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, linear)
    return model


class Ready(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Ready batches."""

    def __init__(self, content: list[dict[str, torch.Tensor]]) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.content[index]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self.content)


def peer(job: Job) -> Timed:
    """llm-compressor's one shot."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from loguru import logger
    from transformers import AutoModelForCausalLM

    logger.remove()  # what it tells of every matrix isn't part of its time
    model = with_linears(AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32))
    settings = dict(job["settings"])
    groups = config_groups(job["bits"], job["groups"], settings.pop("observer"))
    ready = torch.utils.data.DataLoader(Ready(batches(job)), batch_size=None)

    def compress() -> dict[str, torch.Tensor]:
        oneshot(model=model, dataset=ready, recipe=GPTQModifier(config_groups=groups, **settings))
        return {path: model.get_submodule(path).weight.data for path in job["groups"]}

    return compress


if __name__ == "__main__":
    serve(peer)
