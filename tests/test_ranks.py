"""A file imports its own package or a lower rank, and no file is above 500 lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "compresskit"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 500

# Lowest first; those in one line have the same rank and don't import each other.
RANKS = (
    ("errors",),
    ("registry",),
    ("numerics",),
    ("nn",),
    ("models",),
    ("core",),
    ("checkpoint",),
    ("calibrate",),
    ("tasks",),
    ("train",),
    ("methods",),
    ("recipe", "export"),
    ("bench",),
    ("report",),
    ("pipeline",),
    ("suite",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}
NO_METHOD_AND_NO_RECIPE = ("checkpoint", "bench", "export")


def part_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of this package at run time, ``from package import module`` resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {inner for node in ast.walk(tree) if _for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(path, node)
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}"


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    folder = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*folder, *([node.module] if node.module else [])])


def wrong_imports(path: Path) -> list[str]:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return []  # the package's front door, all of it lazy: test_api checks that it imports nothing heavy
    found = []
    for line, module in imports(path):
        other = part_of(module)
        if module.split(".")[0] != "compresskit" or other == own or other not in RANK:
            continue
        if RANK[other] >= RANK[own] or (own in NO_METHOD_AND_NO_RECIPE and other in ("methods", "recipe")):
            found.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    return found


def test_the_test_sees_files_and_imports() -> None:
    assert len(FILES) > 40
    reader = list(imports(PACKAGE / "recipe" / "reader.py"))
    assert "compresskit.core.compressor.Compressor" in [module for _, module in reader]


def test_every_part_has_a_rank() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert parts <= set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    assert wrong_imports(path) == []


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "methods").glob("*/*.py")), ids=lambda path: "/".join(path.parts[-2:])
)
def test_a_method_imports_no_other_method(path: Path) -> None:
    allowed = f"compresskit.methods.{path.parent.name}._"
    others = [module for _, module in imports(path) if module.startswith("compresskit.methods.")]
    assert [module for module in others if not module.startswith(allowed)] == []


@pytest.mark.parametrize(
    "path",
    [path for folder in ("compresskit", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
