"""The page and the card: figures from the report, foreign text inert (S29, S31)."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compresskit.errors import DataError
from compresskit.report.apply_report import read_report
from compresskit.report.card import model_card
from compresskit.report.page import apply_page
from compresskit.report.tables import step_rows, summary_rows
from tests.report.records import parts, steps

REPORT: dict[str, Any] = {
    "source": "some/model",
    "native": False,
    "before": {"parameters": 22_700_000, "disk_bytes": 90_900_000},
    "after": {"parameters": 21_000_000, "disk_bytes": 18_180_000},
    "fidelity": {
        "cosine_mean": 0.9812,
        "cosine_min": 0.9,
        "domains": {"documentation": {"cosine_mean": 0.99, "cosine_min": 0.95}},
    },
    "quality": {"metric": "Spearman", "before": 82.03, "after": 81.9},
    "reload_max_abs_diff": 0.0,
    "warnings": ["a warning"],
    "gates": [{"metric": "size", "gate": "<= 0.25x", "found": 0.2, "unit": "x", "passed": True}],
    "recipe": {"version": 1, "steps": [{"pruning.ffn": {"keep": 0.75}}]},
    "seconds": 61.0,
    "steps": [
        {
            "method": "pruning.ffn",
            "sites": ["a", "b"],
            "skipped": {"c": "it has a single head"},
            "parameters": 21_000_000,
            "bytes": 80_000_000,
            "seconds": 12.0,
            "fidelity": {"cosine_mean": 0.99, "cosine_min": 0.95},
            "recover": {"method": "distillation.embeddings"},
        }
    ],
}
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>|`[x](javascript:alert(1))"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def _tags(page: str) -> _Tags:
    parser = _Tags()
    parser.feed(page)
    return parser


def test_page_shows_the_figures() -> None:
    page = apply_page(REPORT)
    for text in (
        "90.9 MB",
        "18.2 MB",
        "0.20x",
        "cosine 0.9812",
        "81.90",
        "a warning",
        "it has a single head",
        "keep: 0.75",
    ):
        assert text in page
    assert len(page) < 1_000_000
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")


def test_foreign_text_stays_text() -> None:
    report = copy.deepcopy(REPORT)
    report["source"] = HOSTILE
    report["warnings"] = [HOSTILE]
    report["steps"][0]["skipped"] = {HOSTILE: HOSTILE}
    report["recipe"] = {"model": HOSTILE}
    found, plain = _tags(apply_page(report)), _tags(apply_page(REPORT))
    assert found.tags == plain.tags, "no element was added"
    assert "onerror" not in found.attributes
    card = model_card(report, architecture="BertModel")
    assert "<script" not in card
    assert "<img" not in card


def test_card_says_how_to_load() -> None:
    card = model_card(REPORT, architecture="BertModel")
    assert "import compresskit" in card
    assert "BertModel.from_pretrained" in card
    assert "18.2 MB (0.20x)" in card
    stock = model_card({**REPORT, "native": True}, architecture="BertModel")
    assert "import compresskit" not in stock
    assert "Not measured" in card


def test_rows_come_from_the_report() -> None:
    assert step_rows(REPORT["steps"])[0][:2] == ["pruning.ffn + distillation.embeddings", "2 (1 skipped)"]
    assert ["parameters", "22.7 M", "21.0 M", "0.93x"] in summary_rows(REPORT)


def test_reading_a_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert read_report(tmp_path) == REPORT
    assert read_report(tmp_path / "report.json") == REPORT
    for broken in ("", "[]", "{}", "{"):
        (tmp_path / "report.json").write_text(broken)
        with pytest.raises(DataError):
            read_report(tmp_path)


def test_page_of_an_apply_has_waterfall_layers_and_profile() -> None:
    report = copy.deepcopy(REPORT) | {"steps": steps(), "after": {"parameters": 21_000_000, "disk_bytes": 18_800_000}}
    page = apply_page(report, parts())
    order = [
        ">Size by step<",
        ">Steps<",
        ">Gates<",
        ">Layer by layer<",
        ">Where bytes, FLOPs and time are<",
        ">Recipe<",
    ]
    places = [page.index(title) for title in order]
    assert places == sorted(places)
    assert page.count("<svg") == 4, "two charts, each in two widths"
    assert "the profile of the result" not in page
    assert "the profile of the result" in apply_page(report)


@pytest.mark.parametrize("odd", [None, 3, "x", [1], {"a": 1}, [{"a": {}}]])
def test_odd_contents_of_a_step_do_no_harm(odd: Any) -> None:
    report = copy.deepcopy(REPORT)
    report["steps"][0] |= {"details": odd, "warnings": odd, "options": odd}
    report["gates"] = [{"metric": odd, "found": odd, "passed": odd}]
    assert "</html>" in apply_page(report, odd)


def _changed(path: str, value: Any) -> dict[str, Any]:
    """REPORT with ``value`` at a dotted path."""
    report: Any = copy.deepcopy(REPORT)
    *parents, last = path.split(".")
    at = report
    for name in parents:
        at = at[int(name)] if isinstance(at, list) else at[name]
    at[last] = value
    return dict(report)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("before.disk_bytes", 0),
        ("before.disk_bytes", "90"),
        ("after.parameters", 10**400),
        ("fidelity.cosine_mean", "high"),
        ("fidelity", {"cosine_mean": 1.0}),
        ("fidelity.domains", {"a": {"kl_mean": 1.0}}),
        ("steps", {}),
        ("steps.0.bytes", None),
        ("steps.0.skipped", ["a"]),
        ("steps.0.fidelity", 3),
        ("quality", {"metric": "a"}),
        ("warnings", [1]),
        ("native", "yes"),
        ("onnx", {"bytes": -1}),
    ],
)
def test_a_report_of_wrong_types_is_refused(tmp_path: Path, path: str, value: Any) -> None:
    (tmp_path / "report.json").write_text(json.dumps(_changed(path, value)))
    with pytest.raises(DataError) as caught:
        read_report(tmp_path)
    assert caught.value.code == "CK-D040"


def test_control_characters_reach_neither_page_nor_recipe() -> None:
    evil = "a\x00\x1b[31m\u202eb\x9b"
    report = _changed("source", evil) | {"recipe": {evil: evil}, "warnings": [evil]}
    report["steps"][0]["skipped"] = {evil: evil}
    assert not set("\x00\x1b\u202e\x9b") & set(apply_page(report))


def test_a_precision_recall_curve_is_drawn() -> None:
    curve = [[0.0, 1.0], [0.5, 0.8], [1.0, 0.4]]
    page = apply_page(_changed("quality.details", {"pr_curve": curve}))
    assert ">Precision and recall<" in page
    assert ">Precision and recall<" not in apply_page(REPORT)
