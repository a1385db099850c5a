"""What is served, and what it takes to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard

from compresskit.bench import sizes
from compresskit.bench.doctor import write_probe
from compresskit.bench.subjects import find
from tests import models


def test_packed_size_is_that_of_a_stream_that_unpacks_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(np.random.default_rng(0).integers(0, 4, 3_000_000, dtype=np.uint8).tobytes())
    packed = zstandard.ZstdCompressor(level=3).compressobj()
    whole = packed.compress(file.read_bytes()) + packed.flush()
    assert zstandard.ZstdDecompressor().decompressobj().decompress(whole) == file.read_bytes()
    assert sizes.packed_size(file) == pytest.approx(len(whole), rel=0.01)
    assert sizes.packed_size(file) < 0.35 * 3_000_000  # two bits in eight are information


def test_a_checkpoint_of_zeros_packs_to_nothing(tmp_path: Path) -> None:
    model = models.tiny("bert")
    for parameter in model.parameters():
        parameter.data.zero_()
    folder = models.write_checkpoint(model, tmp_path / "zeros")
    found = sizes.sizes(find([str(folder)], None)[0])
    weights, packed = found["size.weights"].value, found["size.weights_zstd3"].value
    assert weights is not None
    assert packed is not None
    assert 0 < packed < 0.1 * weights
    assert found["size.served"].value == sum(
        metric.value or 0 for name, metric in found.items() if name not in ("size.served", "size.weights_zstd3")
    )


def test_large_weights_and_lost_files_are_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = find([str(write_probe(tmp_path / "probe.onnx"))], None)[0]
    assert sizes.sizes(subject)["size.weights_zstd3"].value
    monkeypatch.setattr(sizes, "MOST_BYTES", 10)
    assert sizes.sizes(subject)["size.weights_zstd3"].status == "unavailable"
    (tmp_path / "probe.onnx").unlink()
    assert sizes.sizes(subject)["size.weights_zstd3"].status == "unavailable"
