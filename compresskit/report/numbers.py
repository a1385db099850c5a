"""How figures are written everywhere: MB = 10^6 bytes, ratios with two digits, cosines with four."""

from __future__ import annotations

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
