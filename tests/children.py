"""Child processes of tests, forked so that nothing is imported again: one that may be killed, or several together."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence

from compresskit.core import processes


def forked(action: Callable[[], object]) -> int:
    """Run ``action`` in a child; the child's number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def statuses(children: Sequence[int]) -> list[int]:
    """How each child ended: its exit status, or minus the signal that killed it."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def together(count: int, action: Callable[[], object]) -> list[int]:
    """Run ``action`` in ``count`` children that have joined each other, as under ``torchrun``; how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(number: int) -> Callable[[], object]:
        def run() -> object:
            place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"})
            processes.start()
            return action()

        return run

    return statuses([forked(member(number)) for number in range(count)])
