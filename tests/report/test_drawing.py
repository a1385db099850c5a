"""Axes, labels and drawings: ticks lie on the axis, labels don't cover each other, foreign text stays text."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskit.report.axis import axis_over, tick_label
from compresskit.report.charts.curves import Curve, cost_by_length, precision_recall
from compresskit.report.charts.forest import Ratio, forest
from compresskit.report.charts.pareto import pareto
from compresskit.report.charts.profile import Share, profile_bars
from compresskit.report.charts.trace import MOST_MARKS, Strip, trace
from compresskit.report.charts.waterfall import waterfall
from compresskit.report.figure import NARROW, WIDE
from compresskit.report.svg import Drawing, shortened, text_width
from compresskit.report.trade import Point, Span, standings
from tests.report.records import HOSTILE

NAME = "</text><script>alert(1)</script>"


@given(st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=6), st.integers(2, 9))
def test_ticks_lie_on_the_axis_and_every_value_within(values: list[float], count: int) -> None:
    axis = axis_over(values, 0, 500)
    for value in values:
        assert -1e-6 <= axis.at(value) <= 500 + 1e-6
    ticks = axis.ticks(count)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 4 * count + 1
    for tick in ticks:
        assert axis.low * (1 - 1e-6) - 1e-9 <= tick <= axis.high * (1 + 1e-6) + 1e-9
        assert math.isfinite(float(tick_label(tick, ticks)))


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0.0, 5.0, 10.0], ["0", "5", "10"]),
        ([0.5, 0.6, 0.7], ["0.5", "0.6", "0.7"]),
        ([2.5, 5.0, 7.5], ["2.5", "5.0", "7.5"]),
        ([0.1, 0.3, 1.0], ["0.1", "0.3", "1"]),
        ([76.0, 78.0, 80.0], ["76", "78", "80"]),
    ],
)
def test_tick_labels_have_as_many_digits_as_they_need(ticks: list[float], labels: list[str]) -> None:
    assert [tick_label(tick, ticks) for tick in ticks] == labels


def test_an_axis_of_wide_range_is_logarithmic() -> None:
    assert axis_over([1, 100], 0, 10).log
    assert not axis_over([50, 100], 0, 10).log
    assert not axis_over([0, 100], 0, 10).log


def test_long_names_lose_their_middle() -> None:
    name = "encoder.layer.11.attention.self.query"
    short = shortened(name, 120)
    assert text_width(short) <= 120
    assert short.startswith("encoder")
    assert short.endswith("query")
    assert shortened("a", 3) == "a"


def test_text_and_attributes_are_escaped() -> None:
    drawing = Drawing(10, 10, HOSTILE)
    drawing.words(1, 1, NAME)
    drawing.add("rect", title=NAME, x=1, class_='"><script>')
    root = ElementTree.fromstring(str(drawing.markup()))
    assert [element.tag for element in root.iter()] == ["svg", "text", "rect", "title"]
    assert root.attrib["aria-label"] == HOSTILE
    assert root[0].text == NAME


def _all_charts(width: int, name: str) -> list[Drawing]:
    points = [
        Point(name, Span(5.0, 4.0, 6.0), Span(80.0, 79, 81), 4e6, baseline=True),
        Point("b", Span(9.0, 9.0, 9.0), Span(78.0, 78, 78)),
    ]
    strip = Strip(name, tuple((0, float(i), 5.0 + (i == 7), i == 7) for i in range(20)))
    return [
        pareto(points, standings(points), width, cost="ms", quality=name, describe=lambda point: point.name),
        forest([Ratio(name, name, 0.5, (0.4, 0.6), "FASTER", {name: 0.5})], (0.99, 1.02), 0.02, width),
        trace([strip], width),
        waterfall([(name, 9e6), ("step", 4e6), ("grown", 5e6), ("result", 5e6)], width),
        profile_bars([Share(name, False, ((0.4, name), None))], ["bytes", "ms"], width),
        precision_recall([Curve(name, ((0.0, 1.0), (1.0, 0.2)))], width),
        cost_by_length([Curve(name, ((8, 1.0), (16, 2.0), (32, 4.0)))], width, cost="ms"),
    ]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_drawings_are_well_formed_inert_and_inside_their_box(width: int) -> None:
    for harmless, hostile in zip(_all_charts(width, "a" * len(NAME)), _all_charts(width, NAME), strict=True):
        root = ElementTree.fromstring(str(hostile.markup()))
        plain = ElementTree.fromstring(str(harmless.markup()))
        assert [element.tag for element in root.iter()] == [element.tag for element in plain.iter()]
        assert {"script", "style", "a", "image", "foreignObject"}.isdisjoint(element.tag for element in root.iter())
        for element in plain.iter():
            assert "style" not in element.attrib
            for name in ("x", "cx", "x1", "x2"):
                if name in element.attrib:
                    assert -1 <= float(element.attrib[name]) <= width + 1, (element.tag, element.attrib)
            for name in ("y", "cy", "y1", "y2"):
                if name in element.attrib:
                    assert -1 <= float(element.attrib[name]) <= plain_height(plain) + 1


def plain_height(root: ElementTree.Element) -> float:
    return float(root.attrib["viewBox"].split()[3])


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_names_of_points_cover_neither_each_other_nor_the_edge(width: int) -> None:
    points = [
        Point(
            f"candidate {i}", Span(5 + i % 4, 4.9 + i % 4, 5.1 + i % 4), Span(80 - i, 79.5 - i, 80.5 - i), 1e6 * (i + 1)
        )
        for i in range(10)
    ]
    drawing = pareto(points, standings(points), width, cost="ms", quality="score", describe=lambda point: point.name)
    root = ElementTree.fromstring(str(drawing.markup()))
    labels = [element for element in root.iter("text") if "label" in element.attrib.get("class", "")]
    boxes = []
    for element in labels:
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        boxes.append((x, y - 10, x + text_width(element.text or ""), y + 2))
    assert len(boxes) >= 7
    for index, one in enumerate(boxes):
        assert one[2] <= width
        for other in boxes[index + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_long_trace_is_thinned_and_keeps_its_spikes() -> None:
    slices = tuple((0, float(i), 5.0 * (1.5 if i == 4321 else 1.0), False) for i in range(10_000))
    root = ElementTree.fromstring(str(trace([Strip("a", slices)], WIDE).markup()))
    dots = list(root.iter("circle"))
    assert len(dots) <= MOST_MARKS
    heights = sorted(float(dot.attrib["cy"]) for dot in dots)
    assert heights[0] < heights[1] - 5, "the spike is one dot above the others"


def test_equal_drawings_are_equal_bytes() -> None:
    assert [str(drawing.markup()) for drawing in _all_charts(WIDE, "a")] == [
        str(drawing.markup()) for drawing in _all_charts(WIDE, "a")
    ]
    assert not re.search(r"\d\.\d{3,}", str(_all_charts(WIDE, "a")[0].markup())), "no more digits than are seen"


@pytest.mark.parametrize(("width", "count"), [(WIDE, 20), (NARROW, 9)])
def test_many_points_have_numbers_and_a_legend(width: int, count: int) -> None:
    points = [Point(f"candidate {i}", Span(5 + i, 5 + i, 5 + i), Span(80 - i, 80 - i, 80 - i)) for i in range(count)]
    drawing = pareto(points, standings(points), width, cost="ms", quality="score", describe=lambda point: point.name)
    root = ElementTree.fromstring(str(drawing.markup()))
    texts = [element.text or "" for element in root.iter("text")]
    assert f"{count}  candidate {count - 1}" in texts
    assert "candidate 0" not in texts
    assert texts.count("dominated") == count - 1, "each is named as dominated in the legend"
    lowest = max(float(element.attrib["y"]) for element in root.iter("text"))
    assert lowest < plain_height(root)
