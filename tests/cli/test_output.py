"""Printing: JSON last, nothing wrapped or coloured off a terminal, no control characters, no tokens."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from compresskit.cli._output import Output, clean, print_error, show, table, to_json
from compresskit.errors import ModelError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_clean() -> None:
    assert clean("a\x1b[31mred\x1b[0m\tb\nc") == "ared\tb\nc"
    assert clean("\x1b]8;;https://evil.example\x07link\x1b]8;;\x07") == "link"
    assert clean("a\u202egnp.exe\x9b1m\x00\r") == "agnp.exe1m"
    assert clean("Authorization: hf_abcdefghijklmnop!") == "Authorization: hf_***!"


@given(st.text())
def test_nothing_printed_controls_a_terminal(text: str) -> None:
    stream = io.StringIO()
    show(Text(text), stream)
    assert "\x1b" not in stream.getvalue()
    assert clean(stream.getvalue()) == stream.getvalue()


def test_hostile_names_in_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    show(table(("name",), [["\x1b]8;;https://evil.example\x07\x1b[2Jtensor"]]), stream)
    assert "tensor" in stream.getvalue()
    assert "evil" not in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert "\x1b[1m" in stream.getvalue()  # rich's own codes are left: the header is bold


def test_no_wrapping_off_a_terminal() -> None:
    stream = io.StringIO()
    show(table(("a", "b"), [["x" * 300, "y" * 300], ["[bold]z[/bold]", ":smile:"]]), stream)
    header, first, second = stream.getvalue().splitlines()
    assert first == f"{'x' * 300}  {'y' * 300}"
    assert second.split() == ["[bold]z[/bold]", ":smile:"]
    assert header.split() == ["a", "b"]
    assert not header.endswith(" ")


def test_json_is_strict_and_one_line() -> None:
    text = to_json({"a": [float("nan"), float("inf"), 1.5], "b": {"c": ("é\n", None)}, 3: object})
    assert "\n" not in text
    assert json.loads(text, parse_constant=pytest.fail)["a"] == [None, None, 1.5]
    assert json.loads(text)["b"] == {"c": ["é\n", None]}


def test_result_and_notes_go_to_different_streams(capsys: pytest.CaptureFixture[str]) -> None:
    for json_wanted, quiet in ((False, False), (True, False), (True, True)):
        out = Output(json=json_wanted, quiet=quiet)
        out.note("on the way")
        with out.progress() as progress:
            progress(0.0, "step 1 (a): x")
            progress(0.1, "step 1 (a): y")
            progress(0.5, "step 2 (b)")
        out.result({"value": 1}, "one")
        shown = capsys.readouterr()
        assert shown.out == ('{"value": 1}\n' if json_wanted else "one\n")
        assert shown.err == ("" if quiet else "on the way\n  0% step 1 (a)\n 50% step 2 (b)\n")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    out = Output()
    with out.progress() as progress:
        progress(0.4, "step \x1b[2Jone [red]")
        out.note("said meanwhile")
    assert "said meanwhile" in stream.getvalue()
    assert "step one [red]" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_ci_gets_lines_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("CI", "true")
    with Output().progress() as progress:
        progress(0.4, "one")
    assert stream.getvalue() == " 40% one\n"


def test_errors_are_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    error = ModelError("CK-M999", "bad \x1b[31mname", where="hf_abcdefghijkl")
    print_error(error, json=True)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err
    assert "abcdefgh" not in shown.err + shown.out
    details: dict[str, Any] = json.loads(shown.out)
    assert details["error"]["code"] == "CK-M999"
