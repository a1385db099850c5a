"""A benchmark run from end to end: lock, prepare, measure, write the record; a partial one if it is interrupted."""

from __future__ import annotations

import tempfile
from pathlib import Path

from compresskit.bench.assemble import assemble
from compresskit.bench.journal import Journal
from compresskit.bench.lock import machine_lock
from compresskit.bench.measure import Measurement
from compresskit.bench.options import BenchOptions
from compresskit.bench.prepare import Prepared, Progress, prepare
from compresskit.bench.record import Record, write
from compresskit.errors import InterruptedRun


def run(
    options: BenchOptions, output: Path | None = None, *, resume: bool = False, progress: Progress | None = None
) -> Record:
    """Measure and judge.

    Args:
        output: the record's file; the journal lies beside it as ``.jsonl`` and stays. None keeps neither.
        resume: skip the blocks that the journal holds; refused if models, inputs or machine changed.

    Raises:
        InterruptedRun: CK-B018, after a record with ``complete: false`` was written.
        CompressKitError: the baseline can't be run, or nothing else can.
    """
    tell = progress or (lambda share, what: None)
    with machine_lock(), tempfile.TemporaryDirectory(prefix="compresskit-bench-") as name:
        prepared = prepare(options, Path(name), tell)
        path = (output or Path(name) / "record.json").with_suffix(".jsonl")
        journal = Journal(path, prepared.header, resume=resume)
        try:
            return _measured(prepared, journal, output, tell)
        finally:
            journal.close()


def _measured(prepared: Prepared, journal: Journal, output: Path | None, tell: Progress) -> Record:
    measurement = Measurement(prepared, journal, tell)
    complete = False
    try:
        measurement.run()
        complete = True
    except KeyboardInterrupt:
        measurement.stopped_by = "interrupted"
    record = assemble(
        prepared,
        journal,
        complete=complete,
        stopped_by=measurement.stopped_by,
        failed=measurement.failed,
        parent_cpu_share=measurement.parent_cpu_share,
        samples_ref=journal.path.name if output else None,
    )
    record = write(record, output) if output else record.with_id()
    if not complete:
        raise InterruptedRun(
            "CK-B018",
            "the run was interrupted",
            where=str(output or ""),
            why=f"{len(record.blocks)} blocks were measured",
            fix="the same command with --resume goes on",
        )
    return record
