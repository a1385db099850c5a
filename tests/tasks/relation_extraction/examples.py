"""Sentences that a tiny model can learn: the word between the entities says the relation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

RELATIONS = {"NA": 0, "born": 1, "died": 2}
_VERBS = {"NA": "saw", "born": "born", "died": "died"}


def records(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        relation = list(RELATIONS)[number % 3]
        lead = [rng.choice(["the", "a", "old", "new"]) for _ in range(rng.randint(0, 3))]
        tokens = [*lead, "ann", _VERBS[relation], "in", "new", "york", "."]
        start = len(lead)
        found.append(
            {
                "tokens": tokens,
                "h": {"name": "ann", "tok": [start, start + 1]},
                "t": {"name": "new york", "tok": [start + 3, start + 5]},
                "relation": relation,
                "pair": f"ann{number // 6}###york",
            }
        )
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
