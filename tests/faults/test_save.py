"""F01 to F20 but F09 to F14: whatever happens during a save, the output is wholly what it was or what it should be."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel

from compresskit.checkpoint import faults, lock, save, source, swap
from compresskit.checkpoint.lock import output_lock
from compresskit.checkpoint.save import check_free_space, check_output, save_checkpoint
from compresskit.checkpoint.source import open_source
from compresskit.errors import ModelError, ResourceError, UsageError
from tests import models
from tests.conftest import ROOT
from tests.faults.conftest import Folder, beside
from tests.faults.victim import state

POINTS_AFTER_THE_SWAP = ("swap.done", "save.end", "add.end")


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Asks for a fault, and makes sure that it is forgotten."""

    def ask(text: str) -> None:
        faults.reset()
        monkeypatch.setenv(faults.VARIABLE, text)

    yield ask
    faults.reset()


def test_the_killed_process_really_saved_three_things(killed: dict[str, Any]) -> None:
    assert killed["states_differ"]


@pytest.mark.parametrize("point", faults.SAVE_POINTS)
def test_f01_killed_while_saving_anew(killed: dict[str, Any], point: str) -> None:
    found = killed[f"F01 {point}"]
    assert found["code"] == -9
    assert found["after"] == ("new" if point in POINTS_AFTER_THE_SWAP else "absent")
    assert (found["again"], found["final"], found["left"]) == (0, "new", [])


@pytest.mark.parametrize("point", faults.SAVE_POINTS)
def test_f02_killed_while_overwriting(killed: dict[str, Any], point: str) -> None:
    found = killed[f"F02 {point}"]
    assert found["code"] == -9
    assert found["after"] == ("new" if point in POINTS_AFTER_THE_SWAP else "old")


def test_f02_killed_at_any_moment(killed: dict[str, Any]) -> None:
    moments = killed["every event"]
    assert len(moments) > 20
    assert set(moments) == {"old", "new"}
    assert moments == sorted(moments, reverse=True), "once new, always new"


@pytest.mark.parametrize("point", faults.ADD_POINTS)
def test_f02_killed_while_adding_files(killed: dict[str, Any], point: str) -> None:
    found = killed[f"add {point}"]
    assert found["code"] == -9
    assert found["after"] == ("added" if point in POINTS_AFTER_THE_SWAP else "old")
    assert (found["again"], found["final"], found["left"]) == (0, "added", [])


def test_f03_killed_between_the_two_renames(killed: dict[str, Any]) -> None:
    found = killed["F03 swap.aside"]
    assert (found["code"], found["after"]) == (-9, "absent")
    assert (found["again"], found["final"], found["left"]) == (0, "new", [])


@pytest.mark.parametrize("point", ["swap.begin", "swap.done", "save.end"])
def test_f03_killed_around_the_two_renames(killed: dict[str, Any], point: str) -> None:
    found = killed[f"F03 {point}"]
    assert found["after"] == ("new" if point in POINTS_AFTER_THE_SWAP else "old")
    assert (found["again"], found["final"], found["left"]) == (0, "new", [])


def test_f03_the_next_start_restores_and_says_so(existing: tuple[Path, dict[str, str]]) -> None:
    path, content = existing
    path.rename(path.with_name(f"{path.name}{swap.ASIDE}0123456789ab"))
    with pytest.raises(UsageError, match="exists") as refused:
        check_output(path)
    assert refused.value.code == "CK-I001"
    with pytest.raises(ModelError) as missing:
        open_source(path)
    assert "brings it back" in missing.value.fix
    assert swap.recover(path)[0].startswith("CK-I010")
    assert state(path) == content
    assert beside(path) == []


@pytest.mark.parametrize("size", [1, 500, 4096, 20_000])
def test_f04_disk_full_within_a_weight_file(killed: dict[str, Any], size: int) -> None:
    assert killed[f"F04 {size}"] == {"code": 4, "after": "old", "litter": []}


@pytest.mark.parametrize(
    ("point", "code"),
    [
        ("save.weights:enospc", "CK-I007"),
        ("save.companions:enospc", "CK-I007"),
        ("save.manifest:enospc", "CK-I007"),
        ("save.fsync:eio", "CK-I008"),
        ("save.fsync:eio:2", "CK-I008"),
        ("swap.begin:eio", "CK-I008"),
    ],
)
def test_f04_f05_f07_the_disk_fails(
    existing: tuple[Path, dict[str, str]], model: BertModel, fault: Callable[[str], None], point: str, code: str
) -> None:
    path, content = existing
    fault(point)
    with pytest.raises(ResourceError) as raised:
        save_checkpoint(model, path, overwrite=True)
    assert (raised.value.code, raised.value.exit_code) == (code, 4)
    if code == "CK-I007":
        assert "needed up to" in raised.value.why
        assert "free" in raised.value.why
    assert state(path) == content
    assert beside(path) == []


def test_f05_disk_full_on_the_manifest_of_a_new_output(
    out: Path, model: BertModel, fault: Callable[[str], None]
) -> None:
    fault("save.manifest:enospc")
    with pytest.raises(ResourceError):
        save_checkpoint(model, out / "deep" / "er")
    assert not out.exists(), "folders made on the way are removed again"


def test_f06_not_enough_space_is_found_before(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_free_space(out, 1000)
    usage = shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError) as raised:
        check_free_space(out, 10_001)
    assert raised.value.code == "CK-I006"


def test_f08_a_folder_that_may_not_be_written(killed: dict[str, Any]) -> None:
    found = killed["F08"]
    assert found["code"] == 4
    assert "CK-I005" in found["message"]
    assert found["path"] in found["message"]
    assert "running as user" in found["message"]


HOLD = """
import sys
from compresskit.checkpoint.lock import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_f15_a_second_run_on_the_same_output(existing: tuple[Path, dict[str, str]], model: BertModel) -> None:
    path, content = existing
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    with first.stdin, first.stdout:
        assert first.stdout.readline() == "held\n"
        started = time.perf_counter()
        with pytest.raises(ResourceError) as raised:
            save_checkpoint(model, path, overwrite=True)
        assert time.perf_counter() - started < 1
        assert (raised.value.code, raised.value.exit_code) == ("CK-I009", 4)
        assert str(first.pid) in raised.value.why
        assert beside(path) == ["out.lock"], "the first run's lock is not touched"
        first.stdin.close()
        assert first.wait(timeout=20) == 0
    assert state(path) == content
    save_checkpoint(model, path, overwrite=True)
    assert beside(path) == []


def test_f16_the_lock_of_a_dead_process_is_taken_over(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = lock.Holder.here()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, start in ((ended.pid, here.start), (os.getppid(), here.start + 1e6)):  # gone; the number used again
        holder = lock.Holder(pid, here.host, start)
        out.with_name("out.lock").write_text(lock.json.dumps(lock.asdict(holder)))
        caplog.clear()
        with output_lock(out):
            pass
        assert "CK-I013" in caplog.text
        assert str(pid) in caplog.text
        assert beside(out) == []


def test_f16_the_lock_of_another_machine_is_respected(out: Path) -> None:
    path = out.with_name("out.lock")
    path.write_text(lock.json.dumps({"pid": 1, "host": "elsewhere.example", "start": 1.7e9}))
    with pytest.raises(ResourceError) as raised, output_lock(out):
        pass
    assert "elsewhere.example" in raised.value.why
    assert path.name in raised.value.fix
    assert path.exists()


def test_f17_the_source_changes_during_the_run(bert: Folder) -> None:
    opened = open_source(bert.path)
    opened.load_model()
    os.utime(bert.weights)
    opened.verify_unchanged()  # only touched
    with bert.weights.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    with pytest.raises(ModelError) as raised:
        opened.verify_unchanged()
    assert (raised.value.code, raised.value.exit_code) == ("CK-M017", 3)
    bert.weights.unlink()
    with pytest.raises(ModelError):
        opened.verify_unchanged()


def test_f17_the_config_changes_during_the_run(bert: Folder) -> None:
    opened = open_source(bert.path)
    bert.json(lambda config: config.update(layer_norm_eps=0.5))
    with pytest.raises(ModelError, match=r"config\.json") as raised:
        opened.verify_unchanged()
    assert raised.value.code == "CK-M017"
    with pytest.raises(ModelError, match="before it was loaded"):
        opened.load_model()


def test_f18_from_a_hub_cache_of_links_to_real_files(tmp_path: Path, bert: Folder, out: Path) -> None:
    models.tokenizer().save_pretrained(bert.path)
    snapshot = as_hub_cache(bert.path, tmp_path / "models--a--b")
    opened = open_source(snapshot)
    save_checkpoint(opened.load_model(), out, source=opened)
    assert (out / "tokenizer.json").read_bytes() == (bert.path / "tokenizer.json").read_bytes()
    assert [path for path in out.rglob("*") if path.is_symlink()] == []


def as_hub_cache(folder: Path, cache: Path) -> Path:
    """The same files as the cache of the Hub keeps them: links to blobs."""
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        name = source.hash_file(path)[0] if path.suffix == ".safetensors" else f"{number:040x}"
        shutil.copy(path, cache / "blobs" / name)
        (snapshot / path.name).symlink_to(f"../../blobs/{name}")
    return snapshot


@pytest.mark.parametrize("point", ["save.staged", "save.weights", "save.verified", "swap.begin"])
def test_f19_interrupted_by_the_user(
    existing: tuple[Path, dict[str, str]], model: BertModel, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = existing

    def interrupt(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    monkeypatch.setattr(save, "point", interrupt)
    monkeypatch.setattr(swap, "point", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(model, path, overwrite=True)
    assert state(path) == content
    assert beside(path) == []


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "at", "when"),
    [
        ("model.safetensors", -1, "save.weights"),
        ("model.safetensors", -3000, "save.weights"),
        ("config.json", 30, "save.weights"),
        ("config.json", 30, "save.companions"),
        ("notes.txt", 0, "save.extra"),
        ("tokenizer.json", 100, "save.extra"),
    ],
)
def test_f20_corrupted_between_writing_and_checking(
    existing: tuple[Path, dict[str, str]],
    bert: Folder,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    at: int,
    when: str,
) -> None:
    path, content = existing
    models.tokenizer().save_pretrained(bert.path)
    opened = open_source(bert.path)
    model = opened.load_model()

    def corrupt(passed: str) -> None:
        if passed == when:
            (staged,) = path.parent.glob("*.ck-tmp-*")
            flip(staged / name, at)

    monkeypatch.setattr(save, "point", corrupt)
    with pytest.raises(ModelError) as raised:
        save_checkpoint(model, path, source=opened, extra_files={"notes.txt": "note"}, overwrite=True)
    assert raised.value.exit_code == 3
    assert state(path) == content
    assert [name for name in beside(path) if name != "bert"] == []


def test_an_error_of_the_disk_keeps_its_number() -> None:
    with pytest.raises(ResourceError) as raised, save.storage_errors(Path("x")):
        raise OSError(errno.EDQUOT, "quota")
    assert raised.value.code == "CK-I007"
