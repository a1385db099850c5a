"""The strict reader: YAML 1.2 scalars, refusals with their place, bounds that end the reading at once."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.errors import RecipeError
from compresskit.recipe import strict_yaml
from compresskit.recipe.writer import to_yaml


def data(text: str) -> Any:
    return strict_yaml.parse_yaml(text).data


def failure(text: str | bytes) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        strict_yaml.parse_yaml(strict_yaml.decode(text, "r.yaml") if isinstance(text, bytes) else text, "r.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0x1F", "-0x1F"),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("+3", 3),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("2001-01-01", "2001-01-01"),
        ("true", True),
        ("False", False),
        ("tRuE", "tRuE"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = data(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_words_whatever_they_look_like() -> None:
    assert data("no: 1\n1: 2\ntrue: 3\n") == {"no": 1, "1": 2, "true": 3}


def test_collections_and_places() -> None:
    document = strict_yaml.parse_yaml("a:\n  - {b: [1, 2], c: x}\n  - d\n", "r.yaml")
    assert document.data == {"a": [{"b": [1, 2], "c": "x"}, "d"]}
    where, excerpt = document.locate(("a", 0, "b", 1))
    assert where == "r.yaml:2:13"
    assert excerpt == "   |\n 2 |   - {b: [1, 2], c: x}\n   |             ^"
    assert document.locate(("a", 0, "c"), key=True)[0] == "r.yaml:2:17"
    assert document.locate(("a", 0, "b"))[1].endswith(" ^^^^^^")
    assert document.locate(("a", 0, "nowhere"))[0] == "r.yaml:2:5"


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("a: 1\nb: 2\na: 3\n", "CK-R006", "r.yaml:3:1"),
        ("a: {b: 1, b: 2}", "CK-R006", "r.yaml:1:11"),
        ("a: &x 1\nb: *x\n", "CK-R005", "r.yaml:1:4"),
        ("b: *x\n", "CK-R005", "r.yaml:1:4"),
        ("a: 1\n---\nb: 2\n", "CK-R005", "r.yaml:2:1"),
        ("%YAML 1.1\n---\na: 1\n", "CK-R005", "r.yaml:1:1"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", "CK-R005", "r.yaml:1:1"),
        ("? [a, b]\n: 1\n", "CK-R005", "r.yaml:1:3"),
        ("a: !!int 3\n", "CK-R005", "r.yaml:1:4"),
        ("a: !x 3\n", "CK-R005", "r.yaml:1:4"),
        ("a: [1, 2\nb: 3\n", "CK-R004", "r.yaml:2:2"),
        ("a: 1\n\tb: 2\n", "CK-R004", "r.yaml:2:1"),
        ("a: \x07\n", "CK-R003", "r.yaml:1:4"),
        ('a: "\\ud800"\n', "CK-R003", "r.yaml:1:4"),
        ('a: "\\UFFFFFFFF"\n', "CK-R004", "r.yaml:1:7"),
        ("a: .nan\n", "CK-R012", "r.yaml:1:4"),
        ("a: [-.inf]\n", "CK-R012", "r.yaml:1:5"),
        ("a: 1e999\n", "CK-R012", "r.yaml:1:4"),
    ],
)
def test_refusals_say_where(text: str, code: str, place: str) -> None:
    error = failure(text)
    assert (error.code, error.where) == (code, place)
    assert error.excerpt.count("\n") == 2
    assert error.excerpt.endswith("^")


def test_tabs_get_a_remedy() -> None:
    assert failure("a:\n\tb: 2\n").fix == "indent with spaces"


def test_encodings() -> None:
    text = "a: é\r\nb: 2\r\n"
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
        assert data(strict_yaml.decode(content, "r")) == {"a": "é", "b": 2}
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert failure(text.encode(encoding)).code == "CK-R003"
    error = failure(b"a: \xff\n")
    assert error.code == "CK-R003"
    assert error.where == "r.yaml, byte 3"


def test_nothing_and_null_are_empty() -> None:
    for text in ("", "\n\n", "# only a comment\n", "---\n", "~"):
        assert data(text) is None


def test_s17_python_tags_are_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    error = failure(f"steps: !!python/object/apply:os.system ['touch {canary}']\n")
    assert error.code == "CK-R005"
    assert not canary.exists()


def quickly(text: str) -> RecipeError:
    """The failure, which must come in less than 0.1 s of the processor's time (other tests run beside this one)."""
    best, error = math.inf, None
    for _ in range(3):
        started = time.process_time()
        error = failure(text)
        best = min(best, time.process_time() - started)
    assert best < 0.1
    assert error is not None
    return error


def test_s18_alias_bomb() -> None:
    levels = "".join(f"{chr(97 + i)}: &{chr(97 + i)} [{','.join([f'*{chr(96 + i)}'] * 9)}]\n" for i in range(1, 9))
    assert quickly("a: &a [x, x, x]\n" + levels).code == "CK-R005"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "[" * 20_000 + "]" * 20_000,
        "{a: " * 20_000,
        "- " * 20_000,
        "\n".join(" " * i + "a:" for i in range(400)),
        "a: " + "9" * 5_000,
        "a: 0x" + "f" * 5_000,
        "a: 0." + "1" * 5_000,
        "a: " + "x" * 300_000,
    ],
    ids=["open", "brackets", "braces", "dashes", "indents", "integer", "hex", "float", "large"],
)
def test_s19_depth_digits_and_size(text: str) -> None:
    assert quickly(text).code == "CK-R002"


def test_node_limit() -> None:
    assert failure("[" + "1," * 10_001 + "]").code == "CK-R002"
    assert len(data("[" + "1," * 9_999 + "]")) == 9_999


def test_s19_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as stream:
        stream.truncate(100_000_000)
    started = time.process_time()
    with pytest.raises(RecipeError) as caught:
        strict_yaml.read_file(path)
    assert caught.value.code == "CK-R002"
    assert time.process_time() - started < 0.1


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, tmp_path / "absent.yaml", Path("/dev/zero"), tmp_path / ("x" * 300)):
        with pytest.raises(RecipeError) as caught:
            strict_yaml.read_file(path)
        assert caught.value.code == "CK-R001"
        assert "recipes list" in caught.value.fix


def test_json_is_read_as_json() -> None:
    document = strict_yaml.parse_json('{\n\t"a": [1, 1e-4, true, null, "no", "\\ud83d\\ude00", "\\/"]\n}', "r.json")
    assert document.data == {"a": [1, 1e-4, True, None, "no", "😀", "/"]}
    assert document.locate(("a", 1))[0] == "r.json:2:11"
    for text, code in (
        ("{a: 1}", "CK-R004"),
        ('{"a": 1,}', "CK-R004"),
        ('{"a": 1, "a": 2}', "CK-R006"),
        ("[" * 20_000, "CK-R002"),
        ('{"a": ' + "9" * 5_000 + "}", "CK-R002"),
        ('{"a": "\\ud800"}', "CK-R003"),
    ):
        with pytest.raises(RecipeError) as caught:
            strict_yaml.parse_json(text, "r.json")
        assert caught.value.code == code


YAMLISH = st.text(
    alphabet=st.sampled_from(list("ab01-:,[]{}#&*!|>'\"%@`~?. \n\t\r\\eExX\x00\x85\u2028\ufeff\ud800é😀"))
)


@settings(max_examples=400)
@given(YAMLISH | st.text() | st.binary())
def test_only_typed_errors(text: str | bytes) -> None:
    codes: set[str] = set()
    try:
        decoded = strict_yaml.decode(text, "r") if isinstance(text, bytes) else text
        document = strict_yaml.parse_yaml(decoded, "r")
    except RecipeError as error:
        codes.add(error.code)
    else:
        json.dumps(document.data, allow_nan=False).encode()
    assert codes <= {f"CK-R{number:03d}" for number in (2, 3, 4, 5, 6, 12)}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(["1e-4", "0o7", "12:30", "no", "~", "1.", ".inf", "0x1", "- a", "a: b", " ", "\n", "<<"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), PLAIN, min_size=1, max_size=4))
def test_what_is_written_is_read_back(content: dict[str, Any]) -> None:
    assert data(to_yaml(content)) == content
