"""Exchanging folders, with and without the system call for it, and cleaning up after killed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.checkpoint import swap


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(swap, "_rename", lambda *_: False)
    return str(request.param)


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_new_folder(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    swap.commit(folder(swap.staging_folder(out), "new"), out)
    assert (out / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_in_the_place_of_another(tmp_path: Path, way: str) -> None:
    out = folder(tmp_path / "out", "old")
    swap.commit(folder(swap.staging_folder(out), "new"), out)
    assert (out / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_the_system_call_works_here(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", "1"), folder(tmp_path / "two", "2")
    if not swap._rename(one, two, swap._EXCHANGE):
        pytest.skip("this file system can't exchange folders")
    assert ((one / "file").read_text(), (two / "file").read_text()) == ("2", "1")
    with pytest.raises(FileExistsError):
        swap._rename(one, two, swap._NO_REPLACE)


def test_a_failure_between_the_two_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "_rename", lambda *_: False)
    out = folder(tmp_path / "out", "old")
    with pytest.raises(FileNotFoundError):
        swap.commit(tmp_path / "absent", out)
    assert (out / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_recovery_brings_back_and_sweeps(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder(tmp_path / "out.ck-old-0123456789ab", "old")
    folder(tmp_path / "out.ck-tmp-0123456789ab", "half")
    assert swap.moved_aside(out)
    assert [sentence.split(":")[0] for sentence in swap.recover(out)] == ["CK-I010", "CK-I011"]
    assert (out / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
    assert swap.recover(out) == []


def test_what_was_moved_aside_goes_once_the_output_is_there(tmp_path: Path) -> None:
    out = folder(tmp_path / "out", "new")
    folder(tmp_path / "out.ck-old-0123456789ab", "old")
    assert not swap.moved_aside(out)
    swap.recover(out)
    assert (out / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    out = folder(tmp_path / "out", "new")
    names = [
        "out2.ck-tmp-0123456789ab", "out.ck-tmp-0123456789abc", "out.ck-tmp-mine", "out.ck-work", "out.rejected",
        "xout.ck-tmp-0123456789ab",
    ]  # fmt: skip
    for name in names:
        folder(tmp_path / name, "")
    (tmp_path / "out.ck-tmp-aaaaaaaaaaaa").write_text("a file")
    (tmp_path / "out.ck-tmp-bbbbbbbbbbbb").symlink_to(out)
    before = sorted(tmp_path.iterdir())
    assert swap.recover(out) == []
    assert sorted(tmp_path.iterdir()) == before


def test_an_old_folder_that_cannot_be_removed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    out = folder(tmp_path / "out", "old")
    monkeypatch.setattr(swap.shutil, "rmtree", refuse)
    swap.commit(folder(swap.staging_folder(out), "new"), out)
    assert (out / "file").read_text() == "new"
    assert "can't be removed" in caplog.text
