"""Where a run computes: what the user may name, and whether it is there."""

from __future__ import annotations

import torch

from compresskit.errors import UsageError

KINDS = ("cpu", "cuda")


def usable(name: str) -> torch.device:
    """The device ``name``: ``cpu``, ``cuda``, or one of several as ``cuda:1``.

    Raises:
        UsageError: CK-U018, no such device, or not on this machine.
    """
    device: torch.device | None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise UsageError("CK-U018", f"there is no device {name!r:.60}", fix=f"use one of {', '.join(KINDS)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        present = torch.cuda.device_count()
        raise UsageError(
            "CK-U018",
            f"the device {name} can't be used",
            why=f"torch {torch.__version__} sees {present or 'no'} CUDA device{'s' if present > 1 else ''} here",
            fix="leave --device out to run on the CPU, or install a torch built for CUDA and its driver",
        )
    return device
