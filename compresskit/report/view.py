"""A record as the page, the Markdown table and the CSV file look at it: arms in order, figures that can be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from compresskit.bench.record import Arm, Comparison, Metric, Record
from compresskit.report.foreign import interval, mapping, positive, text
from compresskit.report.foreign import number as finite
from compresskit.report.trade import Point, Span

MOST_ARMS = 40
MOST_NAME = 48
LATENCY = "latency.p50"
_SIZES = ("size.served", "size.serve", "size.disk", "size.total", "size")
_BYTES = {"B": 1.0, "bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_LESS_IS_BETTER = ("perplexity", "bits", "loss", "kl", "error", "nll")
_CLOSENESS = ("parity.cosine", "parity.cosine_mean", "fidelity.cosine_mean")


@dataclass(frozen=True)
class Score:
    """What quality means in a record: the same metric for all arms that are compared by it."""

    name: str
    unit: str
    higher_is_better: bool
    spans: dict[str, Span]


class View:
    """Figures of ``record``, made safe to draw. At most `MOST_ARMS` arms: the baseline, then as they come."""

    def __init__(self, record: Record) -> None:
        self.record = record
        names: dict[str, Arm] = {}
        for arm in sorted(record.arms, key=lambda arm: arm.role != "baseline"):
            names.setdefault(arm.name, arm)
            if len(names) == MOST_ARMS:
                break
        self.arms = list(names.values())
        self.hidden = len(record.arms) - len(self.arms)
        self._names = _unique([text(arm.name, MOST_NAME) for arm in self.arms])
        self._shown = dict(zip((arm.name for arm in self.arms), self._names, strict=True))

    @cached_property
    def cell(self) -> str:
        """The headline's cell, else the first."""
        known = [cell.id for cell in self.record.plan.cells]
        headline = self.record.plan.headline or next((row.cell for row in self.record.comparisons if row.headline), "")
        if headline and (headline in known or not known):
            return headline
        return known[0] if known else next((cell for arm in self.arms for cell in arm.cells), "")

    @cached_property
    def cells(self) -> list[str]:
        """All cells, the headline's first."""
        known = [cell.id for cell in self.record.plan.cells] or [cell for arm in self.arms for cell in arm.cells]
        return list(dict.fromkeys([self.cell, *known]))[:MOST_ARMS]

    @cached_property
    def baseline(self) -> Arm | None:
        """The arm that the others are compared with, if the record names one."""
        return next((arm for arm in self.arms if arm.role == "baseline"), None)

    def headline_metric(self, cell: str | None = None) -> str:
        """What the verdict of a cell is about: the median call, or the median token where text is written."""
        asked = self.cell if cell is None else cell
        named = next((row.metric for row in self.record.comparisons if row.cell == asked), None)
        if named is not None:
            return named
        decoding = any(each.id == asked and each.scenario == "decode" for each in self.record.plan.cells)
        return "latency.token.p50" if decoding else LATENCY

    @property
    def latency_label(self) -> str:
        """The headline figure's name on axes and in tables."""
        return "p50 of a token, ms" if ".token." in self.headline_metric() else "p50, ms"

    def latency(self, arm: Arm, cell: str | None = None) -> Metric:
        """The headline figure of ``arm``."""
        return self.metric(arm, self.headline_metric(cell), cell)

    @property
    def candidates(self) -> list[Arm]:
        """All arms but controls."""
        return [arm for arm in self.arms if arm.role != "control"]

    def shown(self, arm: Arm | str) -> str:
        """An arm's name for people: short, printable, unique among those shown."""
        name = arm if isinstance(arm, str) else arm.name
        return self._shown.get(name) or text(name, MOST_NAME)

    def metric(self, arm: Arm, name: str, cell: str | None = None) -> Metric:
        """A figure of ``arm``, in the headline's cell unless told otherwise."""
        return arm.metric(name, self.cell if cell is None else cell)

    def size_of(self, arm: Arm) -> float | None:
        """Bytes of the files needed to serve."""
        others = (name for name in arm.metrics if name.startswith("size."))
        for name in (*_SIZES, *others):
            metric = arm.metrics.get(name)
            if metric is not None and metric.unit in _BYTES:
                value = positive(metric.value)
                if value is not None:
                    return value * _BYTES[metric.unit]
        return None

    def comparison(self, arm: Arm, cell: str | None = None) -> Comparison | None:
        """``arm`` against the baseline."""
        return self._comparisons.get((arm.name, self.cell if cell is None else cell))

    @cached_property
    def _comparisons(self) -> dict[tuple[str, str], Comparison]:
        found: dict[tuple[str, str], Comparison] = {}
        for row in self.record.comparisons:
            found.setdefault((row.b, row.cell), row)
        return found

    @cached_property
    def score(self) -> Score | None:
        """The task's metric where there is one, else closeness to the baseline, else None."""
        first = next((arm.quality for arm in self.arms if arm.quality is not None and finite(arm.quality.value)), None)
        if first is not None:
            spans = {}
            for arm in self.candidates:
                quality = arm.quality
                if quality is None or (quality.task, quality.metric) != (first.task, first.metric):
                    continue
                value = finite(quality.value)
                if value is not None:
                    spans[arm.name] = Span.of(value, interval(quality.ci))
            name = f"{text(first.metric, 40)} on {text(first.task, 40)}"
            higher = first.details.get("higher_is_better")
            if not isinstance(higher, bool):
                higher = not any(word in first.metric.lower() for word in _LESS_IS_BETTER)
            return Score(name, text(first.unit, 20), higher, spans)
        return self._closeness()

    def _closeness(self) -> Score | None:
        for name in _CLOSENESS:
            spans = {}
            for arm in self.candidates:
                value = finite(self.metric(arm, name).value)
                if value is not None:
                    spans[arm.name] = Span.of(value, interval(self.metric(arm, name).ci))
            if len(spans) > 1:
                for arm in self.candidates:
                    if arm.role == "baseline":
                        spans.setdefault(arm.name, Span.of(1.0, None))
                return Score("cosine to the baseline's outputs", "", True, spans)
        return None

    def points(self, cost: str) -> list[Point]:
        """Candidates with a quality and a cost: ``latency`` in ms, or ``size`` in MB."""
        score = self.score
        found = []
        for arm in self.candidates if score is not None else []:
            span = self.cost_of(arm, cost)
            if span is not None and score is not None and arm.name in score.spans:
                quality = score.spans[arm.name]
                size = self.size_of(arm)
                base = arm.role == "baseline"
                ratio = self._ratio(arm) if cost == "latency" else None
                found.append(Point(self.shown(arm), span, quality, size, base, ratio, self._change(arm)))
        return found

    def _ratio(self, arm: Arm) -> Span | None:
        """Time over the baseline's, measured in turns."""
        if arm.role == "baseline":
            return Span(1.0, 1.0, 1.0)
        row = self.comparison(arm)
        value, ci = (None, None) if row is None else (positive(row.ratio), interval(row.ci))
        return None if value is None or ci is None else Span.of(value, ci)

    def _change(self, arm: Arm) -> Span | None:
        """Quality minus the baseline's on the same examples."""
        if arm.role == "baseline":
            return Span(0.0, 0.0, 0.0)
        against = mapping(arm.quality.against) if arm.quality is not None else {}
        value, ci = finite(against.get("difference")), interval(against.get("ci"))
        return None if value is None or ci is None else Span.of(value, ci)

    def cost_of(self, arm: Arm, cost: str) -> Span | None:
        """What ``arm`` costs, if that can be drawn."""
        if cost == "size":
            size = self.size_of(arm)
            return None if size is None else Span.of(size / 1e6, None)
        metric = self.latency(arm)
        value = positive(metric.value)
        return None if value is None else Span.of(value, interval(metric.ci))


def _unique(names: list[str]) -> list[str]:
    """Those that are equal get a number: two arms are never taken for one."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return found


def verdict_class(verdict: str) -> str:
    """The style of a verdict's cell."""
    return {"FASTER": "faster", "SLOWER": "slower", "SAME": "same"}.get(verdict, "unsure")
