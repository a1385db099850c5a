"""A process that is killed again and again: run as ``python -m tests.faults.victim FOLDER``.

For each case it forks a child that saves and is killed at one point, looks at what the child left, then saves once
more without a fault. One import of torch serves all cases. Prints one JSON object: case -> what was found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from compresskit.checkpoint import faults, swap
from compresskit.checkpoint.save import add_files, check_output, save_checkpoint
from compresskit.checkpoint.source import Source, open_source
from compresskit.errors import CompressKitError, ResourceError

State = dict[str, str] | None


def small_model(seed: int) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertModel(config).eval()


def state(folder: Path) -> State:
    """Path -> sha256 of every file; None where there is no folder."""
    if not folder.is_dir():
        return None
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_child(action: Callable[[], None]) -> int:
    """Run ``action`` in a forked child: its exit code, or minus the signal that killed it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            action()
            code = 0
        except CompressKitError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Victim:
    """Saves ``new`` over nothing or over ``old``; both folders are made once and copied."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "work" / "out"
        self.models = {"old": small_model(1), "new": small_model(2)}
        save_checkpoint(self.models["old"], folder / "old", extra_files={"README.md": "# old\n"})
        self.source: Source = open_source(folder / "old")
        save_checkpoint(self.models["new"], folder / "new", source=self.source, extra_files={"recipe.yaml": "a: 1\n"})
        shutil.copytree(folder / "old", folder / "added")
        add_files(folder / "added", {"onnx/model.onnx": b"graph"})
        self.states = {name: state(folder / name) for name in ("old", "new", "added")}

    def prepare(self, before: str | None) -> None:
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        if before is not None:
            shutil.copytree(self.folder / before, self.out)

    def save(self) -> None:
        extra = {"recipe.yaml": "a: 1\n"}
        save_checkpoint(self.models["new"], self.out, source=self.source, extra_files=extra, overwrite=True)

    def add(self) -> None:
        add_files(self.out, {"onnx/model.onnx": b"graph"})

    def name_of(self, found: State) -> str:
        if found is None:
            return "absent"
        return next((name for name, known in self.states.items() if known == found), f"mixed: {sorted(found)}")

    def case(
        self, before: str | None, action: Callable[[], None], prepare_child: Callable[[], None], again: bool = True
    ) -> dict[str, Any]:
        self.prepare(before)

        def child() -> None:
            prepare_child()
            action()

        code = in_child(child)
        found = {"code": code, "after": self.name_of(state(self.out)), "litter": self.litter()}
        if again:
            found["again"] = in_child(action)
            found["final"] = self.name_of(state(self.out))
            found["left"] = self.litter()
        return found

    def litter(self) -> list[str]:
        return sorted(path.name for path in self.out.parent.iterdir() if path != self.out)


def fault(text: str, *, exchange: bool = True) -> Callable[[], None]:
    def prepare() -> None:
        os.environ[faults.VARIABLE] = text
        faults.reset()
        if not exchange:
            swap._rename = lambda *_: False

    return prepare


def limit_files(size: int) -> Callable[[], None]:
    def prepare() -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    return prepare


class Watch:
    """Looks at the output whenever Python asks the system to open or change something below its parent folder.

    A kill leaves the files as they are at that moment, so this is what a kill at each such moment would leave.
    """

    kinds = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link"})

    def __init__(self, victim: Victim) -> None:
        self.victim, self.folder, self.looking = victim, str(victim.out.parent), False
        self.found: list[str] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.looking or event not in self.kinds or not any(self.folder in str(item) for item in arguments[:2]):
            return
        self.looking = True
        self.found.append(self.victim.name_of(state(self.victim.out)))
        self.looking = False


def at_every_event(victim: Victim) -> list[str]:
    """What is there at each moment of an overwriting save."""
    watch = Watch(victim)
    report = victim.folder / "events.json"

    def child() -> None:
        sys.addaudithook(watch.see)
        victim.save()
        report.write_text(json.dumps(watch.found))

    victim.prepare("old")
    in_child(child)
    seen: list[str] = json.loads(report.read_text())
    return seen


def without_rights() -> dict[str, Any]:
    """A save into a folder of somebody else, by a user who isn't root."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        parent.chmod(0o555)

        def save() -> None:
            if os.geteuid() == 0:
                os.seteuid(65534)
            try:
                check_output(parent / "out")
            except ResourceError as error:
                os.write(writer, str(error).encode())
                raise

        code = in_child(save)
        parent.chmod(0o755)
        return {"code": code, "message": os.read(reader, 4096).decode(), "path": str(parent / "out")}


def main(folder: Path) -> None:
    logging.disable(logging.WARNING)
    os.fsync = lambda fd: None  # a killed process loses nothing that the system already has; fsync is only slow here
    victim = Victim(folder)
    found: dict[str, Any] = {"states_differ": len({json.dumps(known) for known in victim.states.values()}) == 3}
    for point in faults.SAVE_POINTS:
        found[f"F01 {point}"] = victim.case(None, victim.save, fault(f"{point}:kill"))
        found[f"F02 {point}"] = victim.case("old", victim.save, fault(f"{point}:kill"), again=point == "swap.done")
    for point in (*faults.SAVE_POINTS[-3:], "swap.aside"):
        found[f"F03 {point}"] = victim.case("old", victim.save, fault(f"{point}:kill", exchange=False))
    for point in faults.ADD_POINTS:
        found[f"add {point}"] = victim.case("old", victim.add, fault(f"{point}:kill"))
    for size in (1, 500, 4096, 20_000):
        found[f"F04 {size}"] = victim.case("old", victim.save, limit_files(size), again=False)
    found["F08"] = without_rights()
    found["every event"] = at_every_event(victim)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
