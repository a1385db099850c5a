"""Whether values are finite, without copies as large as they are."""

from __future__ import annotations

import torch
from torch import Tensor

_PIECE = 2**18


def all_finite(values: Tensor) -> bool:
    """Whether none of ``values``, of any shape and type, is NaN or infinite.

    They are looked at in pieces: torch makes copies of what it looks at.
    """
    for piece in values.detach().reshape(-1).split(_PIECE):
        # torch has no isfinite for 8-bit floats.
        if not bool(torch.isfinite(piece if piece.element_size() > 1 else piece.float()).all()):
            return False
    return True
