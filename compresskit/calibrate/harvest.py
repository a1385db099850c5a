"""Text that every Python installation carries: reference documentation, docstrings, messages of errors and options.

Sources are read and parsed, never imported. A topic or module belongs as a whole to calibration or to held-out text.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from compresskit.calibrate.everyday import Split, held_out
from compresskit.errors import DataError

MODULES = """
    abc argparse ast asyncio/events asyncio/locks asyncio/queues asyncio/streams asyncio/tasks base64 bdb
    bisect calendar cmd codecs collections/__init__ concurrent/futures/_base configparser contextlib copy csv
    ctypes/__init__ dataclasses decimal difflib dis doctest email/charset email/header email/message
    email/utils enum fileinput filecmp fractions ftplib functools gettext glob graphlib gzip hashlib heapq
    html/parser http/client http/cookiejar http/server imaplib importlib/abc inspect ipaddress json/decoder
    json/encoder keyword linecache locale logging/__init__ logging/config logging/handlers lzma mailbox
    mimetypes multiprocessing/managers multiprocessing/pool netrc nntplib numbers optparse os pathlib pdb
    pickle pkgutil platform plistlib poplib posixpath pprint profile pstats pyclbr queue random reprlib
    rlcompleter sched secrets selectors shelve shlex shutil smtplib socket socketserver sqlite3/dump ssl
    statistics string subprocess symtable sysconfig tempfile textwrap threading timeit tokenize trace
    traceback types unittest/case urllib/parse urllib/request urllib/robotparser uuid venv/__init__ warnings
    wave weakref webbrowser wsgiref/handlers xml/etree/ElementTree xmlrpc/client zipapp zoneinfo/_common
"""
"""Modules of the standard library that say much in words."""

SHORTEST = 25
"""Characters of the shortest text that is taken."""

LONGEST = 2000
"""Characters of the longest: some 400 to 500 tokens."""


@lru_cache(maxsize=4)
def documentation(split: Split) -> tuple[str, ...]:
    """Paragraphs of the language reference, and runs of several paragraphs of one topic."""
    try:
        from pydoc_data.topics import topics  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise _no_sources("pydoc_data") from error
    found: list[str] = []
    for title, text in sorted(topics.items()):
        if held_out(title) != (split == "heldout"):
            continue
        prose = [clean for part in text.split("\n\n") if (clean := _flat(part)) and _is_prose(clean)]
        found.extend(prose)
        found.extend(_runs(prose))
    return tuple(dict.fromkeys(found))


def _runs(paragraphs: list[str]) -> Iterator[str]:
    """Every third run of neighbouring paragraphs, as long as ``LONGEST`` allows: long text, calibrated on too."""
    for start in range(0, len(paragraphs), 3):
        text = paragraphs[start]
        for paragraph in paragraphs[start + 1 :]:
            if len(text) + len(paragraph) > LONGEST:
                break
            text = f"{text} {paragraph}"
        if len(text) > 600:
            yield text


@lru_cache(maxsize=4)
def docstrings(split: Split) -> tuple[str, ...]:
    """First paragraphs, and whole texts, of docstrings of the standard library."""
    return _collected(split, 0)


@lru_cache(maxsize=4)
def messages(split: Split) -> tuple[str, ...]:
    """What the standard library says to people: messages of errors and warnings, help of command-line options."""
    return _collected(split, 1)


def _collected(split: Split, which: int) -> tuple[str, ...]:
    names = [name for name in MODULES.split() if held_out(name) == (split == "heldout")]
    return tuple(dict.fromkeys(text for name in names for text in _texts(name)[which]))


@lru_cache(maxsize=256)
def _texts(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Docstrings and messages of a module; none where this Python version doesn't have it."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    if not folder.is_dir():
        raise _no_sources(str(folder))
    path = folder / f"{name}.py"
    if not path.is_file():
        return (), ()
    described: list[str] = []
    said: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            described.extend(_described(node))
        else:
            said.extend(map(_flat, _spoken(node)))
    return tuple(described), tuple(text for text in said if len(text) >= SHORTEST and " " in text)


def _no_sources(where: str) -> DataError:
    return DataError(
        "CK-D010",
        "the built-in texts need the sources of Python's standard library",
        where=where,
        fix="give a file of your own as calibration data",
    )


def _described(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node) or ""
    for part in (text.split("\n\n")[0], text[:LONGEST]):
        clean = _flat(part)
        if _is_prose(clean):
            yield clean


def _spoken(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield from _strings(node.exc.args[:1])
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ("warn", "error", "warning", "info", "debug", "fail", "log_error", "_"):
            yield from _strings(node.args[:1])
        yield from _strings([keyword.value for keyword in node.keywords if keyword.arg == "help"])


def _strings(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%\(?\w*\)?[-.\d]*[srdx]|\{[^}]*\}", "value", node.value)


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _is_prose(text: str) -> bool:
    """Sentences rather than code, tables or grammar rules."""
    if not SHORTEST <= len(text) <= LONGEST or text.startswith((">>>", "+-", "|", "$", "::")):
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters / len(text) > 0.8 and ">>>" not in text and "::=" not in text
