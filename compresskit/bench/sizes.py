"""Bytes of a subject's files: what has to be served, and what its weights take to download."""

from __future__ import annotations

from pathlib import Path

import zstandard

from compresskit.bench.inputs import folder_of
from compresskit.bench.record import Metric, unavailable
from compresskit.bench.subjects import Subject

ZSTD_LEVEL = 3
MOST_BYTES = 8 * 2**30
"""Weights above this are not compressed to measure them: it would take half a minute."""

_PIECE = 1 << 20


def sizes(subject: Subject) -> dict[str, Metric]:
    """``size.served`` and what it is made of; ``size.weights_zstd3``, which shows bits that hold no information."""
    found = {
        "size.served": Metric(
            value=sum(subject.served.values()),
            unit="bytes",
            method="files needed to serve, tokenizer and config included",
        )
    }
    for role, size in subject.served.items():
        found[f"size.{role.replace(' ', '_')}"] = Metric(value=size, unit="bytes", method="file sizes")
    found["size.weights_zstd3"] = _packed(subject)
    return found


def _packed(subject: Subject) -> Metric:
    files = [folder_of(subject) / name for name in subject.files]
    absent = [file.name for file in files if not file.is_file()]
    if absent or not files:
        return unavailable("bytes", f"there is no file {', '.join(absent) or 'of weights'}")
    if sum(file.stat().st_size for file in files) > MOST_BYTES:
        return unavailable("bytes", f"the weights are above {MOST_BYTES // 2**30} GiB")
    return Metric(value=sum(map(packed_size, files)), unit="bytes", method=f"weight files after zstd -{ZSTD_LEVEL}")


def packed_size(path: Path) -> int:
    """Bytes of a file after zstd; it is read in pieces, and nothing is written."""
    packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
    total = 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            total += len(packer.compress(piece))
    return total + len(packer.flush())
