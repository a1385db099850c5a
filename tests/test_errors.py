"""The tree of errors: codes that are explained, classes that travel between processes, exit codes."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from compresskit import errors
from compresskit.errors import CompressKitError, RecipeError, RecipeErrors
from compresskit.recipe.strict_yaml import parse_yaml

PACKAGE = Path(errors.__file__).parent
CODE = re.compile(r"CK-[RTMLISDXGBU]\d{3}")


def classes(base: type[CompressKitError] = CompressKitError) -> Iterator[type[CompressKitError]]:
    yield base
    for inner in base.__subclasses__():
        yield from classes(inner)


def explained() -> dict[str, dict[str, str]]:
    text = (PACKAGE / "error_codes.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, "error_codes.yaml").data


def raised() -> dict[str, str]:
    """Code -> where, for every string constant of the source that is a code."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                found[node.value] = f"{path.relative_to(PACKAGE)}:{node.lineno}"
    return found


def test_every_raised_code_is_explained() -> None:
    known = explained()
    assert {code: place for code, place in raised().items() if code not in known} == {}


def test_every_explained_code_is_raised() -> None:
    assert sorted(set(explained()) - set(raised())) == []


def test_explanations_are_whole() -> None:
    for code, entry in explained().items():
        assert CODE.fullmatch(code), code
        assert set(entry) == {"title", "help"}, code
        assert len(entry["title"]) < 80, code
        assert len(entry["help"].split()) >= 8, code


@pytest.mark.parametrize("cls", [cls for cls in classes() if cls is not RecipeErrors], ids=lambda cls: cls.__name__)
def test_an_error_survives_pickling(cls: type[CompressKitError]) -> None:
    error = cls("CK-R010", "what", where="r.yaml:1:2", why="why", fix="fix", excerpt=" 1 | x\n   | ^")
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    assert type(copied) is cls
    assert (copied.to_dict(), str(copied), copied.excerpt) == (error.to_dict(), str(error), error.excerpt)


def test_several_errors_survive_pickling() -> None:
    both = RecipeErrors([RecipeError("CK-R010", "one", where="a:1:1"), RecipeError("CK-R012", "two")])
    copied = pickle.loads(pickle.dumps(both))  # noqa: S301  (our own bytes)
    assert str(copied) == str(both)
    assert "one" in str(copied)
    assert "two" in str(copied)


def test_exit_codes_are_those_promised() -> None:
    promised = {
        "GateError": 1,
        "UsageError": 2,
        "RecipeError": 2,
        "RecipeErrors": 2,
        "ModelError": 3,
        "DataError": 3,
        "ExportError": 3,
        "ResourceError": 4,
        "InterruptedRun": 5,
        "SecurityError": 6,
        "InternalError": 70,
        "CompressKitError": 70,
    }
    assert {cls.__name__: cls.exit_code for cls in classes()} == promised


def test_text_form() -> None:
    error = RecipeError("CK-R010", "what", where="r.yaml:1:2", why="why", fix="fix", excerpt="   |\n 1 | x\n   | ^")
    assert str(error).splitlines() == [
        "error[CK-R010]: what",
        " --> r.yaml:1:2",
        "   |",
        " 1 | x",
        "   | ^",
        " why: why",
        " fix: fix",
    ]
