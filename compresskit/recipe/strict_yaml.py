"""A strict reading of YAML: data only, nothing that surprises, bounded before any work is done.

YAML 1.2 core scalars (``1e-4`` is a number; ``no``, ``on`` and ``12:30`` are strings). Refused: tags, anchors,
aliases, directives, several documents, duplicate keys, keys that aren't words, numbers that aren't finite. A recipe has
at most 256 kB, 32 levels and 10 000 nodes. Built on PyYAML's event parser, which doesn't recurse and reads on demand,
so that a limit ends the reading at once.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, cast

import yaml

from compresskit.errors import RecipeError
from compresskit.recipe.places import Document, Path, Place, Text

MAX_BYTES = 256_000
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_DIGITS = 64
_FIND = "give the path of a recipe's file, or the name of a shipped one: `compresskit recipes list`"

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    word: value
    for value, words in {True: "true True TRUE", False: "false False FALSE"}.items()
    for word in words.split()
}
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def read_file(path: FilePath) -> str:
    """The text of a recipe file, at most ``MAX_BYTES`` read.

    Raises:
        RecipeError: CK-R001 no such regular file; CK-R002 too large; CK-R003 not UTF-8.
    """
    name = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RecipeError("CK-R001", "the recipe is not a regular file", where=name, fix=_FIND)
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError("CK-R001", "the recipe can't be read", where=name, why=why, fix=_FIND) from error
    return decode(content, name)


def decode(content: bytes, name: str) -> str:
    """Bytes of a recipe as text; a UTF-8 byte order mark is dropped.

    Raises:
        RecipeError: CK-R002 too large; CK-R003 not UTF-8.
    """
    _refuse_large(len(content), name)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        raise RecipeError("CK-R003", "the recipe is UTF-16 or UTF-32", where=name, fix="save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            "CK-R003", "the recipe is not UTF-8", where=f"{name}, byte {error.start}", fix="save it as UTF-8"
        ) from error


def parse_yaml(text: str, name: str = "recipe") -> Document:
    """Read one YAML document.

    Raises:
        RecipeError: CK-R002 over a limit; CK-R003 a character that YAML forbids; CK-R004 not YAML; CK-R005 a refused
            feature; CK-R006 a duplicate key; each with its line and column.
    """
    _refuse_large(len(text.encode("utf-8", "surrogatepass")), name)
    lines = Text.of(name, text)
    return _Builder(lines).build(_events(text, lines))


def parse_json(text: str, name: str = "recipe") -> Document:
    """Read one JSON object, under the same limits.

    Raises:
        RecipeError: CK-R004 not JSON; otherwise as :func:`parse_yaml`.
    """
    _refuse_large(len(text.encode("utf-8", "surrogatepass")), name)
    lines = Text.of(name, text)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        place = Place(error.lineno - 1, error.colno - 1)
        raise _problem(lines, place, "CK-R004", f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise RecipeError("CK-R002", f"the recipe is nested deeper than {MAX_DEPTH} levels", where=name) from error
    except ValueError as error:
        raise RecipeError("CK-R002", f"a number has more than {MAX_DIGITS} digits", where=name) from error
    # JSON is YAML but for tabs between tokens (inside strings JSON has none) and surrogate pairs, joined below.
    return _Builder(lines).build(_events(text.replace("\t", " "), lines))


def _refuse_large(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise RecipeError("CK-R002", f"the recipe is larger than {MAX_BYTES // 1000} kB", where=name)


def _problem(text: Text, place: Place, code: str, what: str, *, why: str = "", fix: str = "") -> RecipeError:
    return RecipeError(code, what, where=text.where(place), why=why, fix=fix, excerpt=text.excerpt(place))


def _place(event: yaml.Event, text: Text) -> Place:
    # The parser sets both marks of every event; its types say that they may be missing.
    start, end = cast(yaml.Mark, event.start_mark), cast(yaml.Mark, event.end_mark)
    line = text.lines[start.line] if start.line < len(text.lines) else ""
    stop = end.column if end.line == start.line else len(line)
    return Place(start.line, start.column, max(1, stop - start.column))


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner looks ahead for keys, in time quadratic in the open brackets: too many end it here."""

    def __init__(self, text: str, lines: Text) -> None:
        super().__init__(text)
        self.lines = lines

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        mark = self.get_mark()
        if self.flow_level >= MAX_DEPTH:
            raise _too_deep(self.lines, Place(mark.line, mark.column))
        super().fetch_flow_collection_start(token)


def _too_deep(lines: Text, place: Place) -> RecipeError:
    return _problem(lines, place, "CK-R002", f"the recipe is nested deeper than {MAX_DEPTH} levels")


def _events(text: str, lines: Text) -> Iterator[yaml.Event]:
    try:
        loader = _Loader(text, lines)
    except yaml.reader.ReaderError as error:
        raise _forbidden_character(text, lines, error) from error
    try:
        while loader.check_event():
            yield loader.get_event()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or loader.get_mark()
        raise _problem(
            lines,
            Place(mark.line, mark.column),
            "CK-R004",
            "not YAML: " + (error.problem or error.context or "can't be read"),
            why=error.context or "" if error.problem else "",
            fix="indent with spaces" if "'\\t'" in (error.problem or "") else "",
        ) from error
    except (ValueError, OverflowError) as error:
        # PyYAML lets these out for escapes such as "\UFFFFFFFF" and for endless version numbers.
        mark = loader.get_mark()
        raise _problem(
            lines, Place(mark.line, mark.column), "CK-R004", "not YAML: a value out of range", why=str(error)[:200]
        ) from error
    finally:
        loader.dispose()


def _forbidden_character(text: str, lines: Text, error: yaml.reader.ReaderError) -> RecipeError:
    before = Text.of("", text[: error.position]).lines
    place = Place(len(before) - 1, len(before[-1]))
    code = error.character if isinstance(error.character, int) else ord(error.character)
    return _problem(lines, place, "CK-R003", f"the character U+{code:04X} is not allowed in a recipe")


class _Frame:
    """A collection that is being filled."""

    def __init__(self, path: Path, container: dict[str, Any] | list[Any]) -> None:
        self.path, self.container = path, container
        self.key: str | None = None

    def child(self) -> Path:
        """Where the next value stands."""
        if isinstance(self.container, list):
            return (*self.path, len(self.container))
        return (*self.path, self.key or "")

    def put(self, value: Any) -> None:
        """Add a value."""
        if isinstance(self.container, list):
            self.container.append(value)
        else:
            self.container[self.key or ""] = value
            self.key = None


class _Builder:
    """Turns events into data and places, with a stack of its own instead of recursion."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.document = Document(None, text)
        self.frames: list[_Frame] = []
        self.nodes = 0
        self.documents = 0

    def build(self, events: Iterator[yaml.Event]) -> Document:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._start_document(event)
            elif isinstance(event, yaml.AliasEvent):
                raise self._refused(event, "an alias")
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close(event)
        return self.document

    def _start_document(self, event: yaml.DocumentStartEvent) -> None:
        self.documents += 1
        if self.documents > 1:
            raise self._refused(event, "a second document", fix="one recipe a file")
        if event.version or event.tags:
            raise self._refused(event, "a % directive", fix="remove it; recipes are read as YAML 1.2")

    def _check(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> Place:
        self.nodes += 1
        place = _place(event, self.text)
        if self.nodes > MAX_NODES:
            raise _problem(self.text, place, "CK-R002", f"the recipe has more than {MAX_NODES} values")
        if event.anchor is not None:
            raise self._refused(event, "an anchor", fix="write the value out where it is needed")
        if event.tag is not None:
            raise self._refused(event, "a tag", fix="values are plain text, numbers, lists and mappings")
        return place

    def _refused(self, event: yaml.Event, feature: str, fix: str = "") -> RecipeError:
        place = _place(event, self.text)
        return _problem(self.text, place, "CK-R005", f"{feature} is not allowed in a recipe", fix=fix)

    def _expects_key(self) -> bool:
        return bool(self.frames) and isinstance(self.frames[-1].container, dict) and self.frames[-1].key is None

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        place = self._check(event)
        text = _joined(event.value)
        if text is None:
            raise _problem(self.text, place, "CK-R003", "half a surrogate pair is not a character")
        if self._expects_key():
            self._key(text, place)
            return
        self._put(self._value(text, place) if event.implicit[0] else text, place)

    def _key(self, key: str, place: Place) -> None:
        frame = self.frames[-1]
        path = (*frame.path, key)
        if isinstance(frame.container, dict) and key in frame.container:
            first = self.document.keys[path]
            raise _problem(
                self.text,
                place,
                "CK-R006",
                f"the key {key[:80]!r} is here twice",
                why=f"first in line {first.line + 1}",
                fix="keep one of them",
            )
        frame.key = key
        self.document.keys[path] = place

    def _value(self, text: str, place: Place) -> Any:
        if text in _NULL:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if NOT_FINITE.fullmatch(text):
            raise _problem(self.text, place, "CK-R012", f"{text} is not a finite number")
        integer = INTEGER.fullmatch(text)
        if not integer and not FLOAT.fullmatch(text):
            return text
        if len(text) > MAX_DIGITS:
            raise _problem(self.text, place, "CK-R002", f"a number has more than {MAX_DIGITS} digits")
        if integer:
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text, base)
        number = float(text)
        if not math.isfinite(number):
            raise _problem(self.text, place, "CK-R012", f"{text} is too large for a number")
        return number

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        place = self._check(event)
        if len(self.frames) >= MAX_DEPTH:
            raise _too_deep(self.text, place)
        if self._expects_key():
            raise self._refused(event, "a key that is a list or a mapping")
        container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        path = self.frames[-1].child() if self.frames else ()
        self._put(container, place)
        self.frames.append(_Frame(path, container))

    def _close(self, event: yaml.CollectionEndEvent) -> None:
        path = self.frames.pop().path
        start, end = self.document.values[path], cast(yaml.Mark, event.end_mark)
        if end.line == start.line and end.column > start.column:
            self.document.values[path] = Place(start.line, start.column, end.column - start.column)

    def _put(self, value: Any, place: Place) -> None:
        if not self.frames:
            self.document.data = value
            self.document.values[()] = place
            return
        frame = self.frames[-1]
        self.document.values[frame.child()] = place
        frame.put(value)


def _joined(text: str) -> str | None:
    """``text`` with surrogate pairs (from JSON escapes) joined, or None if a half is left."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None
