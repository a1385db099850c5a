"""How figures are written everywhere: MB = 10^6 bytes, ratios with two digits, cosines with four."""

from __future__ import annotations

import math
from typing import Any


def megabytes(count: int) -> str:
    """``22.7 MB``; below a tenth of a megabyte in kB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def millions(count: int) -> str:
    """``22.7 M``; small counts in thousands."""
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def duration(seconds: float) -> str:
    """``75 s``, ``3.2 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"


def fidelity_text(fidelity: dict[str, Any]) -> str:
    """The headline of a fidelity record, or a dash."""
    if "cosine_mean" in fidelity:
        return f"cosine {fidelity['cosine_mean']:.4f} (min {fidelity['cosine_min']:.4f})"
    if "top1_agreement" in fidelity:
        return f"agreement {fidelity['top1_agreement']:.4f}, KL {fidelity['kl_mean']:.4g}"
    return "–"


def plain_number(value: float | None, unit: str = "") -> str:
    """Four digits, no exponent between 0.0001 and a million; a dash where there is none."""
    if value is None:
        return "–"
    size = abs(value)
    if size != 0 and (size < 1e-4 or size >= 1e7):
        shown = f"{value:.3g}"
    elif size >= 1000 or value == int(value):
        shown = f"{value:.0f}"
    else:
        shown = f"{value:.4g}"
    return f"{shown} {unit}" if unit else shown


def with_interval(value: float | None, ci: tuple[float, float] | None, unit: str = "") -> str:
    """``11.9 [11.6, 12.3] ms``."""
    if value is None or ci is None:
        return plain_number(value, unit)
    if 1e-4 <= abs(value) < 1e7:
        # The same decimals for all three, those that the value has with four digits.
        decimals = max(0, 3 - math.floor(math.log10(abs(value))))
        shown = f"{value:.{decimals}f} [{ci[0]:.{decimals}f}, {ci[1]:.{decimals}f}]"
    else:
        shown = f"{plain_number(value)} [{plain_number(ci[0])}, {plain_number(ci[1])}]"
    return f"{shown} {unit}" if unit else shown


def ratio_text(value: float | None, ci: tuple[float, float] | None = None) -> str:
    """``0.612 [0.580, 0.640]``."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci is not None else "")


def held(count: float) -> str:
    """``589.8 kB``, for parts of a model: kB up to a million bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def flops_text(count: float) -> str:
    """``2.87 GFLOP``: a multiplication and its addition are two."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {prefix}FLOP"
    return f"{count:.0f} FLOP"
