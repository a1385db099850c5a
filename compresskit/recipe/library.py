"""The recipes that come along, by name. The first comment of a file says what it is for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from compresskit.errors import RecipeError

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Shipped:
    """One recipe: its name (the file's stem), its file, and what it is for."""

    name: str
    path: Path
    summary: str


def folder() -> Path:
    """Where the recipes lie: inside the installed package, or beside it in a checkout of the project.

    Raises:
        RecipeError: CK-R016, if the installation has none.
    """
    for candidate in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if candidate.is_dir():
            return candidate
    raise RecipeError("CK-R016", "this installation has no recipes", fix="reinstall compresskit")


def shipped() -> dict[str, Shipped]:
    """All recipes by name."""
    return {path.stem: Shipped(path.stem, path, _summary(path)) for path in sorted(folder().glob("*.yaml"))}


def _summary(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# yaml-language-server"):
            return line.removeprefix("# ").strip()
    return ""


def find(name: str) -> Path:
    """The file of the recipe ``name``.

    Raises:
        RecipeError: CK-R001, with the closest name, if there is neither such a file nor such a recipe.
    """
    known = shipped()
    if name in known:
        return known[name].path
    close = difflib.get_close_matches(name, known, n=1)
    raise RecipeError(
        "CK-R001",
        f"there is no file and no recipe {name!r}",
        fix=(f"did you mean {close[0]!r}? " if close else "")
        + "`compresskit recipes list` shows those that come along",
    )
