"""The parent's side of a worker: started fresh, asked one thing at a time, waited for without spinning."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from typing import Any

from compresskit import errors
from compresskit.errors import CompressKitError, ResourceError

STARTING = 300.0
"""Seconds that a worker may take to load its model."""

_TAIL = 2000


class WorkerProcess:
    """One worker. Its environment is the same for all arms.

    Args:
        name: of the arm, for messages.
    """

    def __init__(self, name: str, *, threads: int, device: str) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "compresskit.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment(threads, device),
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the pipe
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._buffer = bytearray()

    def send(self, do: str, **arguments: Any) -> None:
        """Ask, without waiting for the answer."""
        try:
            self._in.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._in.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def receive(self, timeout: float) -> dict[str, Any]:
        """The answer to what was asked last.

        Raises:
            ResourceError: CK-B008, the worker is gone or took too long.
            CompressKitError: what the worker answered instead, CK-B007 for an error of a library.
        """
        until = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                raise ResourceError(
                    "CK-B008", f"the worker of {self.name} gave no answer within {timeout:.0f} s", fix="a smaller batch"
                )
            found = self._out.read(1 << 20)
            if found == b"":
                raise self._gone()
            self._buffer += found or b""
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        answer = json.loads(line)
        if "error" in answer:
            raise _error(answer["error"], self.name)
        content: dict[str, Any] = answer["ok"]
        return content

    def ask(self, do: str, *, timeout: float = 120.0, **arguments: Any) -> dict[str, Any]:
        """Ask and wait."""
        self.send(do, **arguments)
        return self.receive(timeout)

    def close(self) -> None:
        """End the worker; what it is still doing is cut off."""
        self._selector.close()
        for stream in (self._in, self._out):
            try:
                stream.close()
            except BrokenPipeError:
                continue
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stderr.close()

    def _gone(self) -> ResourceError:
        self.process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        lines = said[-_TAIL:].splitlines()
        return ResourceError(
            "CK-B008",
            f"the worker of {self.name} ended with status {self.process.returncode}",
            why=lines[-1][:300] if lines else "it said nothing: perhaps it was killed for memory",
            fix="a smaller batch, or fewer models at once",
        )


def environment(threads: int, device: str) -> dict[str, str]:
    """The environment of every worker: nothing in it differs between arms."""
    fixed = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if device == "cpu":
        fixed["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **fixed}


def _error(content: dict[str, Any], name: str) -> CompressKitError:
    cls = getattr(errors, content.get("class", ""), ResourceError)
    what = f"{name}: {content['what']}"
    return cls(content["code"], what, why=content.get("why", ""), fix=content.get("fix", ""))
