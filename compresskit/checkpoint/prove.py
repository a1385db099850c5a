"""Reopens a saved checkpoint in a fresh process and runs it: the proof that the files hold the model.

The child does what a user does, ``import compresskit`` and then plain ``from_pretrained``, on as many threads as the
parent. Tensors travel as safetensors, everything else as JSON, in a temporary folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = 1800.0

_JOB, _RESULT = "job.json", "result.json"
_STDERR_LINES = 15
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Proof(list["dict[str, Tensor]"]):
    """The outputs of each input, in order, and what the fresh process needed.

    Attributes:
        load_seconds: from the import of torch done to the model loaded.
        run_seconds: all forward passes together.
        peak_rss_bytes: highest resident memory of the process.
    """

    load_seconds: float
    run_seconds: float
    peak_rss_bytes: int


def reload_and_run(
    output: str | Path,
    inputs: Sequence[Mapping[str, Tensor]],
    *,
    threads: int | None = None,
    timeout: float = TIMEOUT,
) -> Proof:
    """Load the checkpoint ``output`` in a fresh process, run it on every input, and bring back its outputs.

    Args:
        inputs: keyword arguments of the model's forward, tensors only.
        threads: by default as many as torch uses here.
        timeout: seconds until the process is killed.

    Returns:
        One dict of tensors an input, as the model names them; tuples of tensors become ``name.0``, ``name.1`` …

    Raises:
        ModelError: CK-L032, the process failed or gave nothing readable; CK-L033, it took longer than ``timeout``.
    """
    import torch
    from safetensors.torch import save_file

    count = torch.get_num_threads() if threads is None else threads
    with tempfile.TemporaryDirectory(prefix="compresskit-proof-") as name:
        folder = Path(name)
        for number, batch in enumerate(inputs):
            save_file(
                {key: value.detach().cpu().contiguous().clone() for key, value in batch.items()}, _input(folder, number)
            )
        job = {"output": str(Path(output).resolve()), "inputs": len(inputs), "threads": count}
        (folder / _JOB).write_text(json.dumps(job), encoding="utf-8")
        _run_child(folder, count, timeout, str(output))
        return _read_result(folder, len(inputs), str(output))


def _input(folder: Path, number: int) -> Path:
    return folder / f"input-{number:05d}.safetensors"


def _output(folder: Path, number: int) -> Path:
    return folder / f"output-{number:05d}.safetensors"


def _run_child(folder: Path, threads: int, timeout: float, output: str) -> None:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (folder / "stderr").open("w+b") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "compresskit.checkpoint.prove", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise _failed("CK-L033", f"took longer than {timeout:.0f} s", folder, output) from None
        finally:
            _end(child)
    if status != 0:
        ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise _failed("CK-L032", ended, folder, output)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave neither the child nor anything that it started."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _failed(code: str, ended: str, folder: Path, output: str) -> ModelError:
    text = (folder / "stderr").read_bytes().decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return ModelError(
        code,
        f"the process that reopens the checkpoint {ended}",
        where=output,
        why="\n".join(["its last lines:", *lines[-_STDERR_LINES:]]) if lines else "it wrote nothing",
        fix="if memory ran out, free some; otherwise report this with the recipe",
    )


def _read_result(folder: Path, count: int, output: str) -> Proof:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        result = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
        proof = Proof(load_file(_output(folder, number)) for number in range(count))
        proof.load_seconds = float(result["load_seconds"])
        proof.run_seconds = float(result["run_seconds"])
        proof.peak_rss_bytes = int(result["peak_rss_bytes"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _failed("CK-L032", f"gave no readable result ({error})", folder, output) from error
    return proof


def _run_job(folder: Path) -> None:
    """Body of the fresh process."""
    job = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(job["threads"])
    started = time.perf_counter()
    model = _load_as_users_do(Path(job["output"]))
    loaded = time.perf_counter()
    with torch.inference_mode():
        for number in range(job["inputs"]):
            outputs = tensors_of(model(**load_file(_input(folder, number))))
            save_file({key: value.contiguous().clone() for key, value in outputs.items()}, _output(folder, number))
    result = {
        "load_seconds": loaded - started,
        "run_seconds": time.perf_counter() - loaded,
        "peak_rss_bytes": _peak_rss_bytes(),
    }
    (folder / _RESULT).write_text(json.dumps(result), encoding="utf-8")


def _die_with_parent(parent: int) -> None:
    """End when the parent is killed, where the system offers that."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the process that asked for this proof has ended")


def _load_as_users_do(path: Path) -> Any:
    import compresskit  # noqa: F401  (what a user writes to load our checkpoints)
    from compresskit.checkpoint.classes import model_class
    from compresskit.checkpoint.memory import order_memory

    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    cls = model_class(config["architectures"][0])
    model = cls.from_pretrained(path).eval()
    # Where tensors begin in memory decides the last bits; for stock checkpoints nobody else takes care of it.
    order_memory(model)
    return model


def tensors_of(output: Any) -> dict[str, Tensor]:
    """The tensors of a model's output by name; caches and other objects are left out."""
    import torch

    found: dict[str, Tensor] = {}
    for name, value in output.items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, tuple | list):
            found.update(
                {f"{name}.{index}": item for index, item in enumerate(value) if isinstance(item, torch.Tensor)}
            )
    return found


def _peak_rss_bytes() -> int:
    """The high-water mark of resident memory; ``ru_maxrss`` would include the parent's before exec."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _die_with_parent(int(sys.argv[2]))
    _run_job(Path(sys.argv[1]))
