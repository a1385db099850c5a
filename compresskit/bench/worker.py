"""The process that holds one model and runs it when told to: ``python -m compresskit.bench.worker``.

It reads one JSON object a line from stdin and answers with one on what was stdout; a blocked read costs nothing while
another arm runs. It ends when stdin closes, so no worker outlives the run that started it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.bench import memory
from compresskit.bench.engines import engine as engine_by_name
from compresskit.bench.engines.base import Engine, Settings, digest, require
from compresskit.bench.timing import collected, settle, time_calls, time_decoding
from compresskit.errors import CompressKitError

_IMPORTS = {"torch": ("torch", "transformers"), "onnxruntime": ("onnxruntime",), "openvino": ("openvino",)}


class Worker:
    """One engine with one model, and the inputs of each cell. Methods ``do_X`` answer messages ``{"do": "X"}``."""

    engine: Engine

    def __init__(self) -> None:
        self._cells: dict[str, dict[str, Any]] = {}
        self._device: memory.DeviceMemory | None = None

    def do_load(self, *, name: str, path: str, threads: int, device: str, dtype: str | None) -> dict[str, Any]:
        """Import the engine, then load the model; times and memory of each."""
        before = memory.resident_mib()
        began = time.perf_counter()
        for package in _IMPORTS.get(name, ()):
            require(package, package)
        imported = time.perf_counter() - began
        self.engine = engine_by_name(name)
        after_import = memory.resident_mib()
        resettable = memory.reset_peak()
        began = time.perf_counter()
        self.engine.load(Path(path), Settings(threads=threads, device=device, dtype=dtype))
        loaded = time.perf_counter() - began
        if self.engine.on_device:
            self._device = memory.DeviceMemory()
        return {
            "import_s": imported,
            "load_s": loaded,
            "rss_start_mib": before,
            "rss_imported_mib": after_import,
            "rss_loaded_mib": memory.resident_mib(),
            "peak_load_mib": memory.peak_mib() if resettable else None,
            "device_mib": self._device.peaks_mib() if self._device else None,
            "details": self.engine.details(),
            "inputs": sorted(self.engine.inputs),
        }

    def do_forget(self, *, files: list[str]) -> dict[str, Any]:
        """Ask the kernel to drop files from its cache; pages that another process maps stay."""
        dropped = 0
        for file in files:
            try:
                descriptor = os.open(file, os.O_RDONLY)
            except OSError:
                continue
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                dropped += 1
            finally:
                os.close(descriptor)
        return {"dropped": dropped}

    def do_inputs(self, *, cell: str, file: str, tokens: list[int], new_tokens: int | None) -> dict[str, Any]:
        """Take the inputs of a cell, run the first of them once; gives their hash and the first call's time."""
        batches = read_batches(Path(file))
        hashes = digest(
            {f"{number}.{name}": array for number, batch in enumerate(batches) for name, array in batch.items()}
        )
        prepared = [self.engine.prepare(batch) for batch in batches]
        self._cells[cell] = {"prepared": prepared, "tokens": tokens, "new_tokens": new_tokens}
        began = time.perf_counter()
        samples, output = self._time(cell, calls=1, start=0, warm=0)
        first = time.perf_counter() - began
        settle()
        return {
            "hash": hashes,
            "first_call_s": samples["wall_ms"][0] / 1e3 if samples else first,
            "output_hash": output,
        }

    def do_calibrate(self, *, cell: str, seconds: float) -> dict[str, Any]:
        """Call until ``seconds`` have passed; gives the least time of a call, ms, and the outputs' hash."""
        best, spent, calls = float("inf"), 0.0, 0
        while spent < seconds or calls < 2:
            samples, _ = self._time(cell, calls=1, start=calls, warm=0)
            best, spent, calls = min(best, samples["wall_ms"][0]), spent + samples["wall_ms"][0] / 1e3, calls + 1
        return {"call_ms": best, "calls": calls}

    def do_slice(self, *, cell: str, calls: int, start: int, warm: int) -> dict[str, Any]:
        """Time consecutive calls."""
        samples, output = self._time(cell, calls=calls, start=start, warm=warm)
        return {**samples, "output_hash": output}

    def do_peak(self, *, cell: str) -> dict[str, Any]:
        """Memory of running one call of a cell, from a fresh mark."""
        resettable = memory.reset_peak()
        if self._device:
            self._device.reset()
        self._time(cell, calls=1, start=0, warm=1)
        return {
            "peak_mib": memory.peak_mib() if resettable else None,
            "rss_mib": memory.resident_mib(),
            "pss_mib": memory.proportional_mib(),
            "device_mib": self._device.peaks_mib() if self._device else None,
        }

    def do_outputs(self, *, cell: str, file: str) -> dict[str, Any]:
        """Write the outputs of a cell's first input to ``file``."""
        entry = self._cells[cell]
        if entry["new_tokens"]:
            return {"names": []}
        found = self.engine.arrays(self.engine.call(entry["prepared"][0]))
        write_batches(Path(file), [found])
        return {"names": sorted(found), "finite": all(bool(np.isfinite(array).all()) for array in found.values())}

    def do_facts(self, *, batch: int, tokens: int, file: str) -> dict[str, Any]:
        """Parameters, operations and parts of the model, as far as the engine lets them be seen."""
        if self.engine.name == "torch":
            from compresskit.bench.counts import counts
            from compresskit.bench.profile import profile
            from compresskit.calibrate.batches import random_batches

            model = self.engine.model  # type: ignore[attr-defined]
            found = counts(model, batch, tokens)
            try:
                words = random_batches(model, samples=batch, max_length=tokens, batch_size=batch, seed=0)[0]
                found["parts"] = [part.to_dict() for part in profile(model, dict(words))]
            except CompressKitError as error:
                found["parts"], found["parts_reason"] = [], error.what
            return found
        if Path(file).suffix != ".onnx":
            reason = "it can be told from checkpoints and ONNX files only"
            return {"parameters": None, "macs": None, "reason": reason}
        from compresskit.bench.onnx_counts import tensors

        return {"parameters": tensors(Path(file)), "macs": None, "reason": "operations are counted on the checkpoint"}

    def do_workload(self, *, file: str, out: str, reduce: str | None) -> dict[str, Any]:
        """Run every batch of a task once, timed, and write what is scored to the folder ``out``.

        Args:
            reduce: ``module:function`` of this package, called with (batch, outputs) outside the timed part: outputs of
                a language model are too large to keep.
        """
        batches = read_batches(Path(file))
        function = _function(reduce) if reduce else None
        wall, cpu = [], []
        for number, batch in enumerate(batches):
            prepared = self.engine.prepare(batch)
            with collected():
                cpu_before, before = time.process_time(), time.perf_counter()
                outputs = self.engine.call(prepared)
                wall.append(1e3 * (time.perf_counter() - before))
                cpu.append(1e3 * (time.process_time() - cpu_before))
            arrays = self.engine.arrays(outputs)
            write_batches(Path(out) / f"{number}.npz", [function(batch, arrays) if function else arrays])
        return {"wall_ms": wall, "cpu_ms": cpu, "batches": len(batches)}

    def _time(self, cell: str, *, calls: int, start: int, warm: int) -> tuple[dict[str, Any], str]:
        entry = self._cells[cell]
        if entry["new_tokens"]:
            samples, output = time_decoding(
                self.engine, entry["prepared"], entry["tokens"], calls=calls, start=start, warm=warm,
                new_tokens=entry["new_tokens"],
            )  # fmt: skip
        else:
            samples, output = time_calls(
                self.engine, entry["prepared"], entry["tokens"], calls=calls, start=start, warm=warm
            )
        return samples.to_dict(), output


def read_batches(path: Path) -> list[dict[str, np.ndarray]]:
    """Named arrays of each batch, from a file that ``write_batches`` made; never a pickle."""
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as content:
        for key in content.files:
            number, _, name = key.partition(".")
            found.setdefault(int(number), {})[name] = content[key]
    return [found[number] for number in sorted(found)]


def write_batches(path: Path, batches: list[dict[str, np.ndarray]]) -> None:
    """Write named arrays of each batch as one ``.npz``."""
    content = {f"{number}.{name}": array for number, batch in enumerate(batches) for name, array in batch.items()}
    np.savez(path, **content)  # type: ignore[arg-type]


def _function(name: str) -> Callable[..., dict[str, np.ndarray]]:
    module, _, attribute = name.partition(":")
    if not module.startswith("compresskit."):
        raise ValueError(f"{name} is no function of compresskit")
    found: Callable[..., dict[str, np.ndarray]] = getattr(import_module(module), attribute)
    return found


def serve(worker: Worker) -> None:
    """Answer messages until stdin closes. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        message = json.loads(line)
        action = message.pop("do")
        try:
            answer = {"ok": getattr(worker, f"do_{action}")(**message)}
        except CompressKitError as error:
            answer = {"error": error.to_dict() | {"class": type(error).__name__}}
        except MemoryError:
            answer = {"error": {"code": "CK-U009", "what": "out of memory", "class": "ResourceError"}}
        except Exception as error:  # the parent decides: one arm that fails doesn't end the run of the others
            answer = {"error": {"code": "CK-B007", "what": f"{type(error).__name__}: {error}"[:1000], "class": ""}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Worker())
