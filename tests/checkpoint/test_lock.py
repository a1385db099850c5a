"""One holder at a time; entering again, other threads, and what is left behind."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import psutil
import pytest

from compresskit.checkpoint.lock import Holder, output_lock
from compresskit.errors import ResourceError


def test_the_file_names_its_holder_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.lock"
    with output_lock(tmp_path / "out"):
        assert Holder(**json.loads(path.read_text())) == Holder.here()
    assert not path.exists()


def test_the_holder_may_enter_again(tmp_path: Path) -> None:
    with output_lock(tmp_path / "out"):
        with output_lock(tmp_path / "x" / ".." / "out"):
            pass
        assert (tmp_path / "out.lock").exists()
    assert not (tmp_path / "out.lock").exists()


def test_another_thread_may_not(tmp_path: Path) -> None:
    refused: list[ResourceError] = []

    def enter() -> None:
        try:
            with output_lock(tmp_path / "out"):
                pass
        except ResourceError as error:
            refused.append(error)

    with output_lock(tmp_path / "out"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert [error.code for error in refused] == ["CK-I009"]
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(refused) == 1


def test_other_outputs_are_free(tmp_path: Path) -> None:
    with output_lock(tmp_path / "one"), output_lock(tmp_path / "two"):
        pass


def test_folders_made_on_the_way_go_if_empty(tmp_path: Path) -> None:
    with output_lock(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with output_lock(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "b" / "out").mkdir()
    assert (tmp_path / "a" / "b" / "out").is_dir()


def test_the_lock_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), output_lock(tmp_path / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\x00" * 100])
def test_a_file_that_names_nobody_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "out.lock").write_text(content)
    with output_lock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("content")
    (tmp_path / "out.lock").symlink_to(victim)
    with pytest.raises(ResourceError), output_lock(tmp_path / "out"):
        pass
    assert victim.read_text() == "content"


def test_alive_is_about_the_very_process() -> None:
    here = Holder.here()
    assert here.alive()
    assert not Holder(here.pid, here.host, here.start - 3600).alive()
    unused = next(pid for pid in range(2, 2**22) if not psutil.pid_exists(pid))
    assert not Holder(unused, here.host, here.start).alive()
    assert f"process {here.pid}" in str(here)
