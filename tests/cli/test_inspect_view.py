"""What ``inspect`` draws: a tree of blocks with shares, sums by kind."""

from __future__ import annotations

import io

from compresskit.cli._output import show
from compresskit.cli.inspect import _view
from tests.report.records import parts


def drawn(**changes: object) -> list[str]:
    found = {
        "model": "some/model",
        "architecture": "BertModel",
        "parameters": 22_700_000,
        "weight_bytes": 90_000_000,
        "disk_bytes": 91_000_000,
        "native": True,
        "operations": 0,
        "parts": parts(2),
        "matches": None,
    }
    stream = io.StringIO()
    show(_view(found | changes), stream)
    return stream.getvalue().splitlines()


def test_parts_hang_under_their_block() -> None:
    lines = drawn()
    block = next(index for index, line in enumerate(lines) if line.startswith("encoder.layer.1 "))
    assert lines[block + 1].startswith("├─ attention")
    assert lines[block + 2].startswith("└─ intermediate")
    assert "340 MFLOP" in lines[block]
    assert "3.60" in lines[block]


def test_sums_by_kind() -> None:
    lines = drawn()
    attention = next(line for line in lines if line.startswith("attention × 2"))
    assert "260 MFLOP" in attention
    assert "38 %" in attention, "2 x 1.3e8 of 2 x 3.4e8"
    assert any(line.startswith("feed-forward networks × 2") for line in lines)


def test_without_a_timed_forward_the_column_is_empty() -> None:
    untimed = [part | {"milliseconds": None} for part in parts(2)]
    block = next(line for line in drawn(parts=untimed) if line.startswith("encoder.layer.0 "))
    assert "3.60" not in block
    assert "340 MFLOP" in block


def test_matches_are_listed() -> None:
    lines = drawn(matches=[{"kind": "matrix", "path": "a.b"}, {"kind": "model", "path": ""}])
    assert "2 sites match" in lines
    assert lines[-1].split() == ["model", "the", "model"]
