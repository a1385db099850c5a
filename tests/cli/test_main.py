"""The front door: fast help, one meaning of each exit code, signals, and errors for people and for programs."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import typer

from compresskit import errors
from compresskit.cli import main as front
from compresskit.cli.main import VERBS, main

COMMAND = [sys.executable, "-m", "compresskit.cli.main"]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], list[str]]:
    """Adds a verb ``fake`` that calls what it is given; the words to run it."""

    def add(act: Callable[..., Any]) -> list[str]:
        module = ModuleType("compresskit.cli.fake")

        def fake(json: bool = False) -> None:
            """Fake."""
            act()

        # Typer resolves annotations in the function's module.
        fake.__module__ = __name__
        module.fake = fake  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "compresskit.cli.fake", module)
        monkeypatch.setitem(VERBS, "fake", "Fake.")
        return ["fake"]

    return add


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_help_is_fast_and_needs_no_torch() -> None:
    # The processor's time, not the clock's: other tests run beside this one.
    best = 10.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < best < 0.3
    assert all(f"\n  {name}" in done.stdout for name in VERBS)
    assert "..." not in done.stdout.partition("Commands:")[2]


@pytest.mark.parametrize(
    "words", [["--help"], [], ["recipes", "list"], ["explain", "CK-R010"], ["nonsense"], ["--version"]]
)
def test_light_verbs_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from compresskit.cli.main import main; main(sys.argv[1:]);"
        "sys.exit(len({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: compresskit {name}")


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (errors.GateError, 1),
        (errors.UsageError, 2),
        (errors.RecipeError, 2),
        (errors.ModelError, 3),
        (errors.DataError, 3),
        (errors.ExportError, 3),
        (errors.ResourceError, 4),
        (errors.InterruptedRun, 5),
        (errors.SecurityError, 6),
        (errors.InternalError, 70),
    ],
)
def test_exit_codes(
    cls: type[errors.CompressKitError], status: int, verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = verb(raising(cls("CK-X999", "what happened", where="place", why="cause", fix="remedy")))
    assert main(words) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "error[CK-X999]: what happened\n --> place\n why: cause\n fix: remedy\nhelp: compresskit explain CK-X999\n"
    )


def test_errors_as_json(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = errors.RecipeError("CK-R010", "one", where="r:1:2"), errors.RecipeError("CK-R012", "two")
    assert main([*verb(raising(errors.RecipeErrors([first, second]))), "--json"]) == 2
    shown = capsys.readouterr()
    content = json.loads(shown.out.splitlines()[-1])
    assert content == {"error": first.to_dict(), "errors": [first.to_dict(), second.to_dict()], "exit_code": 2}
    assert "one" in shown.err
    assert "two" in shown.err


def test_a_bug_is_70_and_shows_its_traceback_on_request(
    verb: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = verb(raising(ZeroDivisionError("division by zero")))
    monkeypatch.delenv("CK_DEBUG", raising=False)
    assert main(words) == 70
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in shown
    assert "CK_DEBUG=1" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("CK_DEBUG", "1")
    assert main(words) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "x"), OSError(28, "No space"), MemoryError()]
)
def test_what_the_system_refuses_is_4(error: Exception, verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(verb(raising(error))) == 4
    assert "CK-U009" in capsys.readouterr().err


def test_keyboard_interrupt_is_5(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(verb(raising(KeyboardInterrupt()))) == 5
    shown = capsys.readouterr().err
    assert "stopped by SIGINT" in shown
    assert "--resume" not in shown, "this verb has nothing that could be resumed"


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code, part in (
        (["aply"], "CK-U001", "did you mean 'apply'?"),
        (["explain", "--nope"], "CK-U002", "compresskit explain --help"),
        (["recipes", "nope"], "CK-U002", "nope"),
        (["recipes", "new"], "CK-U002", "Missing argument"),
        (["--nope"], "CK-U002", "--nope"),
    ):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert f"error[{code}]" in shown.err
        assert part in shown.err


def test_handlers_are_put_back(verb: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(verb(lambda: None)) == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_status_of_a_verb_is_kept(verb: Any) -> None:
    assert main(verb(raising(typer.Exit(4)))) == 4


SLEEPER = """
import sys, time
from types import ModuleType
from compresskit.cli import main as front

def sleeper():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        if "--stubborn" in sys.orig_argv:
            print("cleaning", flush=True)
            time.sleep(60)
        print("cleaned", flush=True)

module = ModuleType("compresskit.cli.apply")  # a verb that can be resumed
module.apply = sleeper
sys.modules[module.__name__] = module
sys.exit(front.main(["apply"]))
"""


def start(*words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f19_a_signal_stops_cleanly(number: signal.Signals) -> None:
    process = start()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 5
    assert out == "cleaned\n"
    assert f"stopped by {number.name}" in err
    assert "--resume" in err
    assert "Traceback" not in err


def test_f19_a_second_signal_ends_at_once() -> None:
    process = start("--stubborn")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 5
    assert out == ""


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen([*COMMAND, "explain"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 4
    assert err == ""


def test_completion_knows_the_options_of_a_verb() -> None:
    words = {"_COMPRESSKIT_COMPLETE": "complete_bash", "COMP_WORDS": "compresskit explain --", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from compresskit.cli.main import console_script; console_script()"],
        capture_output=True,
        text=True,
        env={**os.environ, **words},
        check=False,
    )
    assert "--json" in done.stdout.split()


def test_help_lines_are_sentences() -> None:
    assert all(line.endswith(".") and len(line) < 70 for line in front.VERBS.values())
