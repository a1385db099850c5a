"""Files inside the page, behind data: links: nothing is fetched, and no script is needed to save them."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable

from compresskit.bench.record import Record
from compresskit.report.content import Download
from compresskit.report.foreign import finite, text

_PLAIN = 150_000
_MOST_SAMPLES = 400_000
_MOST_ARMS = 2_000


def downloads(record: Record, name: str, room: int, csv: Callable[[], str]) -> list[Download]:
    """The record as JSON and its figures as CSV, within ``room`` bytes of page.

    A record that is too large is compressed, then loses its raw samples, then is only named by its hash.
    """
    made = [_json(record, name, room)]
    left = room - len(made[0].href)
    link = _link("text/csv;charset=utf-8", csv().encode()) if len(record.arms) <= _MOST_ARMS else ""
    if link and len(link) <= left:
        made.append(Download(f"{name}.csv", link, "every figure, a row each"))
    return made


def _json(record: Record, name: str, room: int) -> Download:
    samples = sum(len(part.wall_ms) for block in record.blocks for part in block.slices)
    smaller = record.model_copy(update={"blocks": []})
    tries = [(record, "the record, with its raw samples")] if samples <= _MOST_SAMPLES else []
    tries += [(smaller, "the record without its raw samples")] if record.blocks or not tries else []
    for content, says in tries if len(record.arms) <= _MOST_ARMS else []:
        encoded = json.dumps(finite(content.to_dict()), allow_nan=False, separators=(",", ":")).encode()
        if 4 * len(encoded) / 3 <= min(room, _PLAIN):
            return Download(f"{name}.json", _link("application/json", encoded), says)
        link = _link("application/gzip", gzip.compress(encoded, 9, mtime=0))
        if len(link) <= room:
            return Download(f"{name}.json.gz", link, f"{says}, compressed")
    return Download(f"{name}.json", "", f"the record is too large to be carried here: {text(record.id) or 'no id'}")


def _link(kind: str, content: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode()
