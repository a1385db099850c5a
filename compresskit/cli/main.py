"""The command line: which verbs there are, how each run ends.

A verb is imported only when it is asked for, so that ``--help`` needs neither torch nor transformers.
"""

from __future__ import annotations

import difflib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer

from compresskit import __version__
from compresskit.cli._output import clean, print_error
from compresskit.errors import CompressKitError, InternalError, InterruptedRun, ResourceError, UsageError

# Verb -> its line in `compresskit --help`. The module of the same name in this folder holds an object of the same name:
# a function with typer options, or a `typer.Typer` with verbs of its own.
VERBS = {
    "compress": "Compress a model by a shipped recipe: the short form of apply.",
    "plan": "Show what a recipe would do to a model: sites, sizes, warnings.",
    "apply": "Run a recipe on a checkpoint: save, reopen, print the proof.",
    "inspect": "Show where a model's bytes, FLOPs and milliseconds are.",
    "methods": "List the methods with their options.",
    "recipes": "List, show and copy the recipes that come along.",
    "verify": "Check that a compressed checkpoint is still what was written.",
    "export": "Make the ONNX file of a checkpoint, and check it.",
    "bench": "Compare models on this machine, in turns, with the noise shown.",
    "report": "Write one self-contained HTML page of what an apply did.",
    "schema": "Print the JSON Schema of recipes.",
    "explain": "Explain an error code.",
    "doctor": "Check this machine and installation.",
}

_PROGRAM = "compresskit"
_RESUMABLE = ("apply", "compress")
# typer brings its own click; its base of all usage errors has no public name.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    cls for cls in typer.BadParameter.__mro__ if issubclass(cls, Exception) and cls.__name__ == "ClickException"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status of the process.

    0 done, 1 a gate was missed, 2 usage or recipe, 3 model or data, 4 resources, 5 interrupted and resumable, 6 refused
    for security, 70 a bug.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    json = "--json" in words
    stopped: list[int] = []
    previous = _install_handlers(stopped)
    _never_fail_to_print()
    # The bars of libraries would run into ours; child processes inherit this.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return _run(words)
    except KeyboardInterrupt:
        stopped.append(signal.SIGINT)
    except CompressKitError as error:
        return _fail(error, json=json)
    except BrokenPipeError:
        _discard_stdout()
        return ResourceError.exit_code
    except (OSError, MemoryError) as error:
        return _fail(_refused_by_system(error), json=json)
    except Exception as error:
        return _fail(_bug(error), json=json)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    name = signal.Signals(stopped[0]).name
    fix = "`apply --resume` goes on after the last finished step, if there is one" if _verb(words) in _RESUMABLE else ""
    return _fail(InterruptedRun("CK-U006", f"stopped by {name}", fix=fix), json=json)


def console_script() -> None:
    """The entry point ``compresskit``."""
    # Tracing for ONNX makes millions of objects that stay: looking for garbage among them took an eighth of an export.
    gc.set_threshold(100_000, 20, 20)
    sys.exit(main())


def _run(words: list[str]) -> int:
    verb = _verb(words)
    if verb is not None and verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError("CK-U001", f"there is no verb {clean(verb)!r}", fix=hint + f"verbs: {', '.join(VERBS)}")
    target = None if verb is None else getattr(import_module(f"compresskit.cli.{verb}"), verb)
    if isinstance(target, typer.Typer) and words == [verb]:
        words = [*words, "--help"]
    try:
        status = _application(verb, target)(args=words, prog_name=_PROGRAM, standalone_mode=False)
    except _USAGE_ERRORS as error:
        what = error.format_message() if hasattr(error, "format_message") else str(error)
        fix = f"{_PROGRAM} {verb} --help" if verb else f"{_PROGRAM} --help"
        raise UsageError("CK-U002", what.rstrip("."), fix=fix) from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except SystemExit as error:
        # typer's answer to a closed stdout; no verb of ours exits by itself.
        raise BrokenPipeError from error
    # typer turns KeyboardInterrupt into the status 130, which no verb of ours has.
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _verb(words: Sequence[str]) -> str | None:
    """The first word that is no option; while a shell completes, the one on its line."""
    completing = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    line = completing.split()[1:] if f"_{_PROGRAM.upper()}_COMPLETE" in os.environ else words
    found = next((word for word in line if not word.startswith("-")), None)
    return found if completing == "" or found in VERBS else None


def _application(verb: str | None, target: Any) -> Any:
    """All verbs by their help lines; ``verb`` itself by its ``target``."""
    app = typer.Typer(name=_PROGRAM, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(help="Compress Hugging Face models by recipe.")(_root)
    for name, line in VERBS.items():
        if name != verb:
            app.command(name, help=line)(_not_loaded)
        elif isinstance(target, typer.Typer):
            app.add_typer(target, name=name, help=line)
        else:
            app.command(name)(target)
    return typer.main.get_command(app)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{_PROGRAM} {__version__}\n")
        raise typer.Exit


_VERSION = typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)


def _root(version: Annotated[bool, _VERSION] = False) -> None:
    """Options before the verb."""


def _not_loaded() -> None:
    """Stands for a verb that wasn't asked for."""


def _install_handlers(stopped: list[int]) -> dict[int, Any]:
    """Make the first SIGINT or SIGTERM stop the run cleanly, and the second at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            os._exit(InterruptedRun.exit_code)
        stopped.append(number)
        raise KeyboardInterrupt

    try:
        return {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where signals can't be handled
        return {}


def _never_fail_to_print() -> None:
    """Characters that the terminal's encoding lacks are escaped instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """The reader of our output went away: let the interpreter's last flush go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def _refused_by_system(error: OSError | MemoryError) -> ResourceError:
    if isinstance(error, MemoryError):
        return ResourceError("CK-U009", "out of memory", fix="a smaller batch, fewer samples, or a larger machine")
    where = str(error.filename) if error.filename else ""
    return ResourceError("CK-U009", error.strerror or str(error) or type(error).__name__, where=where)


def _bug(error: Exception) -> InternalError:
    return InternalError(
        "CK-U003",
        f"a bug in compresskit: {type(error).__name__}: {error}",
        fix="" if _debugging() else "CK_DEBUG=1 shows the traceback; please report it",
    )


def _debugging() -> bool:
    return os.environ.get("CK_DEBUG") == "1"


def _fail(error: CompressKitError, *, json: bool) -> int:
    if _debugging():
        sys.stderr.write(clean(traceback.format_exc()))
    print_error(error, json=json)
    return error.exit_code


if __name__ == "__main__":
    console_script()
