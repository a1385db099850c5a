"""What every verb prints: the result on stdout, everything else on stderr.

Nothing is wrapped or coloured when it doesn't go to a terminal. Control characters never reach one: names of tensors,
files and models come from strangers. ``NO_COLOR`` and ``CI`` are respected.
"""

from __future__ import annotations

import json as json_module
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from compresskit.errors import CompressKitError, RecipeErrors

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Progress = Callable[[float, str], None]

# Escape sequences whole, then what is left of C0 (but for tab and line feed), C1, and marks that reorder text.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b."
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_UNWRAPPED = 100_000


def clean(text: str) -> str:
    """``text`` without control characters and access tokens."""
    return _TOKEN.sub("hf_***", _CONTROL.sub("", text))


def _console(stream: IO[str]) -> Console:
    from rich.console import Console
    from rich.segment import Segment

    class Safe(Console):
        """Drops control characters from whatever is printed, keeping rich's own."""

        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(clean(segment.text), segment.style)

    plain = not stream.isatty()
    return Safe(
        file=stream,
        width=_UNWRAPPED if plain else None,
        color_system=None if plain else "auto",
        force_terminal=False if plain else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def show(view: RenderableType, stream: IO[str]) -> None:
    """Print text or a rich renderable; lines that don't go to a terminal end without blanks."""
    if isinstance(view, str):
        stream.write(clean(view) + "\n")
        return
    console = _console(stream)
    if stream.isatty():
        console.print(view)
        return
    with console.capture() as captured:
        console.print(view)
    stream.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    """A borderless table; cells are plain text."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, show_header=any(columns))
    for name in columns:
        made.add_column(name)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def to_json(content: Any) -> str:
    """One line of strict JSON; what isn't finite is null."""
    return json_module.dumps(_finite(content), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class Output:
    """The voice of one command.

    Args:
        json: print the result as one JSON object, the last line of stdout, instead of for people.
        quiet: no progress and no notes.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self._live: Console | None = None

    def result(self, data: Mapping[str, Any], view: RenderableType) -> None:
        """Print what the command is for: ``data`` as JSON, or ``view``."""
        if self.json:
            sys.stdout.write(to_json(data) + "\n")
        else:
            show(view, sys.stdout)
        sys.stdout.flush()

    def note(self, view: RenderableType) -> None:
        """Tell people something on the way, on stderr."""
        if self.quiet:
            return
        if self._live is not None:
            self._live.print(view)
        else:
            show(view, sys.stderr)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A function to call with (fraction done, what is done now): a bar on a terminal, else a line a stage."""
        if self.quiet:
            yield lambda share, what: None
        elif not sys.stderr.isatty() or os.environ.get("CI"):
            yield _line_by_stage()
        else:
            with self._bar() as update:
                yield update

    @contextmanager
    def _bar(self) -> Iterator[Progress]:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        console = _console(sys.stderr)
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TimeRemainingColumn())
        with Bars(*columns, TextColumn("{task.description}", markup=False), console=console, transient=True) as bars:
            task = bars.add_task("", total=1.0)
            self._live = console
            try:
                yield lambda share, what: bars.update(task, completed=share, description=clean(what))
            finally:
                self._live = None


def _line_by_stage() -> Progress:
    """Prints when the stage changes; what follows a colon is detail, too much for a log."""
    last = ""

    def update(share: float, what: str) -> None:
        nonlocal last
        stage = clean(what).partition(":")[0]
        if stage != last:
            last = stage
            sys.stderr.write(f"{100 * share:3.0f}% {stage}\n")
            sys.stderr.flush()

    return update


def print_error(error: CompressKitError, *, json: bool) -> None:
    """Say what went wrong on stderr; under ``--json`` also as the last line of stdout."""
    sys.stderr.write(clean(str(error)) + "\n")
    errors = error.errors if isinstance(error, RecipeErrors) else [error]
    codes = dict.fromkeys(item.code for item in errors)
    sys.stderr.write("".join(f"help: compresskit explain {code}\n" for code in codes))
    sys.stderr.flush()
    if json:
        details = [item.to_dict() for item in errors]
        sys.stdout.write(
            _TOKEN.sub("hf_***", to_json({"error": details[0], "errors": details, "exit_code": error.exit_code})) + "\n"
        )
        sys.stdout.flush()
