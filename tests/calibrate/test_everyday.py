"""Remarks: short, and each on one side of the split."""

from __future__ import annotations

import random

from compresskit.calibrate import everyday


def test_remarks_are_short_and_each_belongs_to_one_split() -> None:
    choice = random.Random(3)
    made = {split: {everyday.remark(choice, split) for _ in range(200)} for split in ("calibration", "heldout")}
    assert not made["calibration"] & made["heldout"]
    assert all(len(found) > 150 for found in made.values())
    assert all(2 <= len(text.split()) <= 14 for found in made.values() for text in found)
    assert all(text[0].isupper() and text[-1] in ".!?" for found in made.values() for text in found)
