"""A set of resident workers, one an arm, of which one runs at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskit.bench.inputs import Work
from compresskit.bench.pool import STARTING, WorkerProcess
from compresskit.bench.subjects import Subject
from compresskit.bench.worker import write_batches
from compresskit.errors import CompressKitError, DataError

_LEAST_TIMEOUT, _PATIENCE = 120.0, 200.0


class WorkerSet:
    """Fresh processes for ``arms``.

    Args:
        arms: name -> what it runs.
        number: of this set of processes, in the record.
        resident: all stay loaded and idle; otherwise one is loaded at a time, for models that don't fit together.
    """

    def __init__(
        self,
        arms: Mapping[str, Subject],
        *,
        number: int,
        threads: int,
        device: str,
        dtype: str | None,
        folder: Path,
        resident: bool = True,
    ) -> None:
        self.number, self.resident = number, resident
        self.facts: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, CompressKitError] = {}
        self._subjects = dict(arms)
        self._settings = {"threads": threads, "device": device, "dtype": dtype}
        self._folder = folder
        self._works: list[Work] = []
        self._workers: dict[str, WorkerProcess] = {}

    @property
    def arms(self) -> list[str]:
        """Those that could be loaded, in order."""
        return [name for name in self._subjects if name not in self.failed]

    def start(self) -> None:
        """Start all workers and let them load at the same time; ``finish_start`` waits for them."""
        if self.resident:
            for name in self._subjects:
                self._launch(name)

    def finish_start(self, works: Sequence[Work]) -> None:
        """Wait until every model is loaded, and hand out the inputs. An arm that fails is left out.

        Raises:
            DataError: CK-B013, a worker read other inputs than were written.
        """
        self._works = list(works)
        for work in works:
            path = self._inputs_file(work)
            if not path.exists():
                write_batches(path, work.batches)
        for name in list(self._subjects):
            if self.resident:
                self._settle(name)
            else:
                self._only(name)

    def slice(self, arm: str, cell: str, *, calls: int, start: int, warm: int, call_ms: float) -> dict[str, Any]:
        """Timed calls of one arm; the others wait. ``call_ms`` is for how long to wait for an answer."""
        if not self.resident:
            self._only(arm)
        timeout = max(_LEAST_TIMEOUT, _PATIENCE * (calls + warm) * call_ms / 1e3)
        return self._workers[arm].ask("slice", timeout=timeout, cell=cell, calls=calls, start=start, warm=warm)

    def ask(self, arm: str, do: str, *, timeout: float = 600.0, **arguments: Any) -> dict[str, Any]:
        """Anything else."""
        if not self.resident:
            self._only(arm)
        return self._workers[arm].ask(do, timeout=timeout, **arguments)

    def calibrate(self, cell: str, *, seconds: float) -> float:
        """Least time of a call of the slowest arm, ms."""
        return max(float(self.ask(arm, "calibrate", cell=cell, seconds=seconds)["call_ms"]) for arm in self.arms)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def __enter__(self) -> WorkerSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, name: str) -> None:
        subject = self._subjects[name]
        worker = WorkerProcess(name, threads=self._settings["threads"], device=self._settings["device"])  # type: ignore[arg-type]
        worker.send("load", name=subject.engine, path=str(subject.path), **self._settings)
        self._workers[name] = worker

    def _settle(self, name: str) -> None:
        worker = self._workers[name]
        try:
            facts = worker.receive(STARTING)
            facts["loading_at_once"] = len(self._workers) if self.resident else 1
            for work in self._works:
                found = worker.ask(
                    "inputs",
                    timeout=STARTING,
                    cell=work.cell.id,
                    file=str(self._inputs_file(work)),
                    tokens=work.tokens,
                    new_tokens=work.cell.new_tokens,
                )
                if found["hash"] != work.cell.input_hash:
                    raise DataError("CK-B013", f"{name} was given other inputs than the other arms")
                facts.setdefault("first_call_s", found["first_call_s"])
                facts.setdefault("output_hash", {})[work.cell.id] = found["output_hash"]
        except CompressKitError as error:
            self.failed[name] = error
            worker.close()
            del self._workers[name]
            return
        self.facts[name] = facts

    def _only(self, name: str) -> None:
        """Have ``name`` alone loaded."""
        if name in self._workers:
            return
        self.close()
        self._launch(name)
        self._settle(name)
        if name in self.failed:
            raise self.failed[name]

    def _inputs_file(self, work: Work) -> Path:
        return self._folder / f"{work.cell.id.replace('/', '_')}.npz"
