"""F09 to F14: what an output may be, and what may be there already."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import BertModel

from compresskit.checkpoint.save import check_output, save_checkpoint
from compresskit.checkpoint.source import open_source
from compresskit.errors import UsageError
from tests.faults.conftest import Folder, beside
from tests.faults.victim import state


def test_f09_an_existing_output_needs_overwrite(existing: tuple[Path, dict[str, str]], model: BertModel) -> None:
    path, content = existing
    with pytest.raises(UsageError) as raised:
        save_checkpoint(model, path)
    assert (raised.value.code, raised.value.exit_code) == ("CK-I001", 2)
    assert state(path) == content
    assert beside(path) == []


def test_f09_overwrite_deletes_nothing_but_checkpoints(out: Path, model: BertModel) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError) as raised:
        save_checkpoint(model, out, overwrite=True)
    assert raised.value.code == "CK-I012"
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_f09_other_software_has_files_of_our_names(out: Path, name: str) -> None:
    out.mkdir()
    (out / name).write_text('{"name": "web page", "version": 1}')
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError) as raised:
        check_output(out, overwrite=True)
    assert raised.value.code == "CK-I012"


def test_f09_a_stock_checkpoint_is_replaced(bert: Folder, model: BertModel) -> None:
    save_checkpoint(model, bert.path, overwrite=True)
    assert open_source(bert.path).load_model().config.hidden_size == 16


@pytest.mark.parametrize("kind", ["same", "dots", "link", "inside", "around"])
def test_f10_the_output_is_the_source(bert: Folder, tmp_path: Path, kind: str) -> None:
    path = bert.path
    link = tmp_path / "link"
    link.symlink_to(path.parent)
    outputs = {
        "same": path,
        "dots": path / "x" / "..",
        "link": link / path.name,
        "inside": path / "out",
        "around": path.parent,
    }
    before = state(path)
    (path.parent / "config.json").write_text(
        '{"model_type": "bert"}'
    )  # so that what is around would be taken for a checkpoint
    with pytest.raises(UsageError) as raised:
        check_output(outputs[kind], source=open_source(path), overwrite=True)
    assert (raised.value.code, raised.value.exit_code) == ("CK-I002", 2)
    assert state(path) == before


@pytest.mark.parametrize("kind", ["file", "dangling", "link to a folder", "below a file", "pipe"])
def test_f11_the_output_is_no_folder(out: Path, model: BertModel, kind: str) -> None:
    other = out.with_name("other")
    target = out
    if kind == "file":
        out.write_text("here")
    elif kind == "dangling":
        out.symlink_to(other)
    elif kind == "link to a folder":
        other.mkdir()
        out.symlink_to(other)
    elif kind == "below a file":
        out.write_text("here")
        target = out / "x" / "y"
    else:
        os.mkfifo(out)
    with pytest.raises(UsageError) as raised:
        save_checkpoint(model, target, overwrite=True)
    assert (raised.value.code, raised.value.exit_code) == ("CK-I003", 2)
    assert os.path.lexists(out)
    assert not other.exists() or list(other.iterdir()) == []


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_f12_rights_follow_the_umask(
    bert: Folder, out: Path, model: BertModel, umask: int, file_mode: int, folder_mode: int
) -> None:
    before = os.umask(umask)
    try:
        save_checkpoint(model, out, source=open_source(bert.path), extra_files={"onnx/notes.txt": "x"})
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in out.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {file_mode}
    assert {out.stat().st_mode & 0o777, modes[out / "onnx"]} == {folder_mode}


@pytest.mark.parametrize("name", ["Übung 漢字 🙂", "with spaces", "-leading", "x" * 200, "[*]?", "a'b\"c$(d)"])
def test_f13_odd_names_work(tmp_path: Path, model: BertModel, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(model, Path(name))
    save_checkpoint(model, Path(name), overwrite=True)
    assert open_source(tmp_path / name).load_model().config.hidden_size == 16
    assert beside(tmp_path / name) == []


@pytest.mark.parametrize("name", ["new\nline", "bell\x07", "\x1b[31mred", "right\u202eleft", "nul\0", "\udc80", ""])
def test_f13_names_that_would_garble_a_terminal_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_output(os.path.join(tmp_path, name) if name else name)
    assert raised.value.code == "CK-I004"
    assert str(raised.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["x" * 216, "x" * 300, "é" * 108, "/".join(["y" * 200] * 25)])
def test_f14_too_long_names_are_refused_before(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_output(tmp_path / name)
    assert (raised.value.code, raised.value.exit_code) == ("CK-I004", 2)
