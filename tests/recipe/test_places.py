"""Excerpts: readable and harmless whatever the line holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compresskit.recipe.places import Document, Place, Text, dotted


def test_long_lines_are_cut_around_the_place() -> None:
    text = Text.of("r", "a" * 300 + "HERE" + "b" * 300)
    excerpt = text.excerpt(Place(0, 300, 4))
    _, line, carets = excerpt.splitlines()
    assert line.index("HERE") == carets.index("^")
    assert carets.count("^") == 4
    assert len(line) < 120


def test_margin_fits_the_line_number() -> None:
    text = Text.of("r", "\n" * 99 + "key: value")
    assert text.where(Place(99, 5)) == "r:100:6"
    assert text.excerpt(Place(99, 5, 5)) == "     |\n 100 | key: value\n     |      ^^^^^"


@given(st.text(max_size=300), st.integers(0, 5), st.integers(0, 400), st.integers(1, 400))
def test_any_place_in_any_text(content: str, line: int, column: int, width: int) -> None:
    excerpt = Text.of("r", content).excerpt(Place(line, column, width))
    assert excerpt == "" or (excerpt.count("\n") == 2 and "^" in excerpt)
    assert "\x1b" not in excerpt


def test_the_nearest_part_with_a_place_is_named() -> None:
    document = Document({}, Text.of("r", "a: b"), keys={("a",): Place(0, 0)}, values={("a",): Place(0, 3)})
    assert document.locate(("a",))[0] == "r:1:4"
    assert document.locate(("a",), key=True)[0] == "r:1:1"
    assert document.locate(("a", "b", 0))[0] == "r:1:1"
    assert Document({}, Text("recipe")).locate(("steps", 1, "keep")) == ("recipe: steps[1].keep", "")
    assert dotted(("steps", 1, "pruning.ffn", "keep")) == "steps[1].pruning.ffn.keep"
