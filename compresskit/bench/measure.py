"""The measuring itself: sets of fresh workers, blocks in turn, each on disk before the next, and when to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from compresskit.bench.blocks import Block, Slice
from compresskit.bench.comparisons import Rules, half_width
from compresskit.bench.details import take_details
from compresskit.bench.environment import throttled
from compresskit.bench.inputs import Work, folder_of
from compresskit.bench.journal import Journal
from compresskit.bench.pool import STARTING, WorkerProcess
from compresskit.bench.prepare import Prepared, Progress
from compresskit.bench.schedule import Slices, block_id, order, plan_slices
from compresskit.bench.workers import WorkerSet
from compresskit.checkpoint import faults

CALIBRATION_SECONDS = 0.15
_CHECK_RESAMPLES = 2000
_SESSION = 1000


class Measurement:
    """Measures what is not yet in the journal.

    Attributes:
        stopped_by: the rule that ended it.
        failed: arm -> why it could not be run.
    """

    def __init__(self, prepared: Prepared, journal: Journal, tell: Progress) -> None:
        self.prepared, self.journal, self.tell = prepared, journal, tell
        self.profile = prepared.options.stop
        self.stopped_by = "samples"
        self.failed: dict[str, str] = {}
        self._done = {block.id for block in journal.blocks()}
        self._began = time.monotonic()
        self._parent_cpu = self._parent_wall = 0.0
        self._seconds = 0.0

    @property
    def parent_cpu_share(self) -> float | None:
        """CPU time of this process over the time of measuring."""
        return self._parent_cpu / self._parent_wall if self._parent_wall else None

    def run(self) -> None:
        """Measure every cell.

        Raises:
            CompressKitError: the baseline, or every other arm, can't be run.
        """
        for threads in dict.fromkeys(work.cell.threads for work in self.prepared.works):
            works = [work for work in self.prepared.works if work.cell.threads == threads]
            if self.profile.together:
                self._together(works, threads)
            else:
                self._one_after_another(works, threads)
        if self.prepared.options.details and not self.profile.together:
            self._cold_starts()
        self.journal.add("finished", stopped_by=self.stopped_by)

    def _together(self, works: list[Work], threads: int) -> None:
        replicates = range(self.profile.replicates[0])
        if all(self._finished(works, replicate) for replicate in replicates) and self._detailed(works):
            return
        sets = {replicate: self._set(replicate, threads) for replicate in replicates}
        try:
            self.tell(0.02, "load the models")
            for workers in sets.values():
                workers.start()
            for replicate, workers in sets.items():
                self._ready(workers, works, replicate)
            self._blocks(sets, works)
            self._details(sets[0], works)
        finally:
            for workers in sets.values():
                workers.close()

    def _one_after_another(self, works: list[Work], threads: int) -> None:
        least, most = self.profile.replicates
        for replicate in range(most):
            if replicate >= least and self._enough(works):
                return
            if self._finished(works, replicate) and (replicate or self._detailed(works)):
                continue
            with self._set(replicate, threads) as workers:
                self.tell(replicate / most, f"load the models, set {replicate + 1}")
                workers.start()
                self._ready(workers, works, replicate)
                self._blocks({replicate: workers}, works)
                if replicate == 0:
                    self._details(workers, works)

    def _set(self, replicate: int, threads: int) -> WorkerSet:
        options = self.prepared.options
        arms = {name: arm for name, arm in self.prepared.arms.items() if name not in self.failed}
        return WorkerSet(
            arms,
            number=_SESSION * self.journal.session + replicate,
            threads=threads,
            device=options.device,
            dtype=options.dtype,
            folder=self.prepared.scratch,
            resident=self.prepared.resident,
        )

    def _cold_starts(self) -> None:
        """One fresh process an arm, alone on the machine, with the model's files dropped from the page cache first."""
        options = self.prepared.options
        for name, subject in self.prepared.arms.items():
            known = self.journal.find("cold", arm=name) is not None
            if known or name in self.failed or name == self.prepared.control:
                continue
            self.tell(0.97, f"cold start: {name}")
            worker = WorkerProcess(name, threads=options.threads[0], device=options.device)
            try:
                files = [str(folder_of(subject) / file) for file in subject.files]
                dropped = worker.ask("forget", files=files)["dropped"]
                found = worker.ask(
                    "load",
                    timeout=STARTING,
                    name=subject.engine,
                    path=str(subject.path),
                    threads=options.threads[0],
                    device=options.device,
                    dtype=options.dtype,
                )
            finally:
                worker.close()
            self.journal.add("cold", arm=name, load_s=found["load_s"], import_s=found["import_s"], dropped=dropped)

    def _ready(self, workers: WorkerSet, works: list[Work], replicate: int) -> None:
        workers.finish_start(works)
        for name, error in workers.failed.items():
            self.failed.setdefault(name, str(error.what))
            if name == self.prepared.baseline or set(self.prepared.others) <= set(self.failed):
                raise error
        for name, facts in workers.facts.items():
            self.journal.add("started", arm=name, replicate=replicate, set=workers.number, facts=facts)

    def _blocks(self, sets: Mapping[int, WorkerSet], works: list[Work]) -> None:
        """All blocks of these sets, cell by cell; sets take turns."""
        for work in works:
            slices, call_ms = self._slices(work, next(iter(sets.values())))
            began, cpu = time.monotonic(), time.process_time()
            for number in range(slices.blocks):
                for replicate, workers in sets.items():
                    self._block(work, workers, replicate, number, slices, call_ms)
                share = (number + 1) / slices.blocks
                self.tell(0.05 + 0.9 * share, f"measure {work.cell.id}: block {number + 1} of {slices.blocks}")
                if time.monotonic() - began > self.profile.limit and share < 1:
                    self.stopped_by = "time"
                    break
            self._seconds += time.monotonic() - began
            self._parent_wall += time.monotonic() - began
            self._parent_cpu += time.process_time() - cpu

    def _slices(self, work: Work, workers: WorkerSet) -> tuple[Slices, float]:
        """How many calls and blocks: as the run began, or by timing some calls."""
        known = self.journal.find("slices", cell=work.cell.id)
        if known is None:
            call_ms = workers.calibrate(work.cell.id, seconds=CALIBRATION_SECONDS)
            planned = plan_slices(self.profile, call_ms)
            known = {**vars(planned), "call_ms": call_ms}
            self.journal.add("slices", cell=work.cell.id, **known)
        blocks = int(known["blocks"])
        if self.prepared.options.max_blocks is not None:
            blocks = min(blocks, self.prepared.options.max_blocks)
        return Slices(int(known["calls"]), int(known["warm"]), blocks), float(known["call_ms"])

    def _block(
        self, work: Work, workers: WorkerSet, replicate: int, number: int, slices: Slices, call_ms: float
    ) -> None:
        name = self._id(work, replicate, number)
        if name in self._done:
            return
        cell, device = work.cell.id, self.prepared.options.device
        turns = order(workers.arms, seed=self.prepared.options.seed, cell=cell, replicate=replicate, number=number)
        parts = []
        for position, arm in enumerate(turns):
            started = time.monotonic() - self._began
            found = workers.slice(
                arm, cell, calls=slices.calls, start=number * slices.calls, warm=slices.warm, call_ms=call_ms
            )
            parts.append(
                Slice(arm=arm, position=position, started=round(started, 3), throttled=throttled(device), **found)
            )
        block = Block(
            id=name,
            cell=cell,
            replicate=replicate,
            number=number,
            process=workers.number,
            order=turns,
            slices=parts,
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        )
        faults.point("bench.block")
        self.journal.add("block", block=block.model_dump(mode="json"))
        self._done.add(name)

    def _id(self, work: Work, replicate: int, number: int) -> str:
        models = [f"{name} {arm.engine} {arm.fingerprint}" for name, arm in self.prepared.arms.items()]
        return block_id(
            models, work.cell.id, work.cell.input_hash, self.prepared.env.hash, replicate=replicate, number=number
        )

    def _finished(self, works: list[Work], replicate: int) -> bool:
        for work in works:
            known = self.journal.find("slices", cell=work.cell.id)
            if known is None:
                return False
            blocks = min(int(known["blocks"]), self.prepared.options.max_blocks or int(known["blocks"]))
            if any(self._id(work, replicate, number) not in self._done for number in range(blocks)):
                return False
        return True

    def _detailed(self, works: list[Work]) -> bool:
        if not self.prepared.options.details or works[0] is not self.prepared.works[0]:
            return True
        return self.journal.find("detailed") is not None

    def _details(self, workers: WorkerSet, works: list[Work]) -> None:
        """What is measured once: on the workers of the first set, after their blocks."""
        if not self._detailed(works):
            self.tell(0.95, "memory, parameters, quality")
            take_details(self.prepared, workers, works[0], self.journal)

    def _enough(self, works: list[Work]) -> bool:
        """Whether the stop rule holds for the headline."""
        if self.profile.half_width is None:
            return True
        if self._seconds > self.profile.most_seconds * len(self.prepared.arms) * len(works):
            self.stopped_by = "time"
            return True
        rival = next((name for name in self.prepared.others if name not in self.failed), self.prepared.control)
        if rival is None:
            return True
        found = half_width(
            self.journal.blocks(),
            works[0].cell,
            self.prepared.baseline,
            rival,
            device=self.prepared.options.device,
            rules=Rules(resamples=_CHECK_RESAMPLES),
        )
        if found is not None and found <= self.profile.half_width:
            self.stopped_by = "half_width"
            return True
        return False
