"""Faults on demand, for tests: named points where a run can be killed or its disk can fail.

Active only while the environment variable ``CK_FAULT=point:action[:n]`` is set; the action happens when the point is
passed for the n-th time (by default the first).

- ``kill``: SIGKILL to this process
- ``enospc``, ``eio``: the OSError of a full or broken disk
- ``nan``: the tensor handed to the point gets a NaN
- ``slow``: a pause of ``CK_FAULT_SECONDS`` (2)
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from compresskit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "CK_FAULT"
ACTIONS = ("kill", "enospc", "eio", "nan", "slow")

SAVE_POINTS = (
    "save.begin",
    "save.staged",
    "save.weights",
    "save.companions",
    "save.extra",
    "save.verified",
    "save.manifest",
    "save.fsync",
    "save.complete",
    "swap.begin",
    "swap.done",
    "save.end",
)
"""All points of a save, in order. ``swap.aside`` comes between the last two ``swap`` points where the system can't
exchange two folders at once."""

ADD_POINTS = (
    "add.begin",
    "add.linked",
    "add.written",
    "save.fsync",
    "add.complete",
    "swap.begin",
    "swap.done",
    "add.end",
)
"""All points of adding files to a checkpoint, in order."""

_passed: dict[str, int] = {}


def point(name: str, values: Tensor | None = None) -> None:
    """A place where a fault may be asked for.

    Args:
        values: a floating tensor that the action ``nan`` spoils.

    Raises:
        UsageError: CK-I020, the variable can't be understood.
        OSError: asked for.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    place, action, number = _parse(asked)
    if place != name:
        return
    _passed[asked] = _passed.get(asked, 0) + 1
    if _passed[asked] == number:
        _happen(action, name, values)


def _parse(asked: str) -> tuple[str, str, int]:
    place, _, rest = asked.partition(":")
    action, _, number = rest.partition(":")
    if not place or action not in ACTIONS or not (number or "1").isdecimal():
        raise UsageError(
            "CK-I020",
            f"{VARIABLE}={asked!r} can't be understood",
            fix=f"write point:action[:n], with an action of {', '.join(ACTIONS)}; or unset it",
        )
    return place, action, int(number or 1)


def _happen(action: str, name: str, values: Tensor | None) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "slow":
        time.sleep(float(os.environ.get("CK_FAULT_SECONDS", "2")))
    elif action == "nan":
        if values is not None:
            values.view(-1)[0] = float("nan")
    else:
        number = errno.ENOSPC if action == "enospc" else errno.EIO
        raise OSError(number, os.strerror(number), name)


def reset() -> None:
    """Forget how often points were passed; for tests that set the variable again in one process."""
    _passed.clear()
