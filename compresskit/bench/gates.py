"""``bench compare``: two records of one machine, and conditions on what changed from the one to the other.

A gate passes, fails, or can't be told: a change whose interval reaches over the bound. What can't be told passes,
unless asked to be strict.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from compresskit.bench.analysis import headline_statistic, slices_of
from compresskit.bench.blocks import Block
from compresskit.bench.record import Arm, Cell, Record
from compresskit.errors import DataError, UsageError
from compresskit.numerics.statistics import bootstrap_p, hierarchical_bootstrap, holm, interval

GateVerdict = Literal["PASS", "FAIL", "AMBIGUOUS", "UNKNOWN"]

_GATE = re.compile(r"^\s*([a-z0-9_.]+)\s*(<=|>=)\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*(%|pp|x)?\s*$")
_SIZE = "size.served"
_HARDWARE = ("model", "logical", "physical", "architecture", "flags")


@dataclass(frozen=True)
class Gate:
    """A bound on a change: ``p50<=-10%``, ``quality>=-0.5pp``, ``size<=0.30x``.

    Args:
        metric: ``p50``, ``size``, ``quality``, or the name of any figure of the record.
        unit: ``%`` change, ``pp`` difference in points, ``x`` quotient, or "" for the new value itself.
    """

    text: str
    metric: str
    operator: Literal["<=", ">="]
    bound: float
    unit: str

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies within the bound."""
        return value <= self.bound if self.operator == "<=" else value >= self.bound


@dataclass(frozen=True)
class Checked:
    """What became of a gate: the change with its interval in the gate's own unit."""

    gate: str
    arm: str
    value: float | None
    ci: tuple[float, float] | None
    p: float | None
    verdict: GateVerdict
    reason: str = ""


@dataclass(frozen=True)
class Change:
    """One figure in both records."""

    arm: str
    cell: str
    metric: str
    before: float | None
    after: float | None
    unit: str
    ratio: float | None
    ci: tuple[float, float] | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Comparison:
    """Both records side by side.

    Args:
        cross_machine: they are of different machines or work: figures stand side by side without verdicts.
        differences: in what the environments differ.
    """

    changes: list[Change]
    gates: list[Checked]
    cross_machine: bool
    differences: list[str]

    def failed(self, *, strict: bool = False) -> bool:
        """Whether a gate was missed; if ``strict``, also whether one can't be told."""
        bad = {"FAIL", "AMBIGUOUS", "UNKNOWN"} if strict else {"FAIL", "UNKNOWN"}
        return any(gate.verdict in bad for gate in self.gates)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def parse_gate(text: str) -> Gate:
    """A gate from the command line.

    Raises:
        UsageError: CK-B030.
    """
    found = _GATE.match(text)
    if found is None:
        raise UsageError(
            "CK-B030",
            f"{text!r:.80} is no gate",
            fix='such as "p50<=-10%", "quality>=-0.5pp", "size<=0.30x", "latency.p99<=20"',
        )
    metric, operator, bound, unit = found.groups()
    return Gate(text.strip(), metric, operator, float(bound), unit or "")  # type: ignore[arg-type]


def compare(a: Record, b: Record, gates: Sequence[Gate] = (), *, allow_env_diff: bool = False) -> Comparison:
    """``b`` against ``a``, arm by arm.

    Arms are paired by name; what is left, in order. Ratios come from the raw samples of both records; they were not
    measured in turns, so their intervals are as wide as processes differ.

    Raises:
        DataError: CK-B031, other hardware, threads or inputs, unless ``allow_env_diff``.
    """
    differences = environment_differences(a, b)
    if differences and not allow_env_diff:
        raise DataError(
            "CK-B031",
            "the records can't be compared",
            why="; ".join(differences)[:400],
            fix="measure both on one machine, or --allow-env-diff to see the figures without verdicts",
        )
    cross = bool(differences)
    pairs = _pairs(a, b)
    if not pairs:
        raise DataError("CK-B031", "the records have no arm in common", fix="give records of the same kind of run")
    changes = [change for left, right in pairs for change in _changes(a, b, left, right, judged=not cross)]
    checked = [_check(gate, a, b, left, right) for gate in gates for left, right in pairs if _gated(left, right, pairs)]
    if cross:
        checked = [_hidden(item) for item in checked]
    return Comparison(changes, _corrected(checked), cross, differences)


def environment_differences(a: Record, b: Record) -> list[str]:
    """What makes two records incomparable: hardware, device, cells, inputs, task data. Versions of packages don't."""
    found = [
        f"processor {name}: {a.env.cpu.get(name)} and {b.env.cpu.get(name)}"[:160]
        for name in _HARDWARE
        if a.env.cpu.get(name) != b.env.cpu.get(name)
    ]
    names = [[str(item.get("name")) for item in record.env.gpu] for record in (a, b)]
    if names[0] != names[1]:
        found.append(f"GPU: {names[0]} and {names[1]}"[:160])
    if a.plan.device != b.plan.device:
        found.append(f"device: {a.plan.device} and {b.plan.device}")
    left, right = a.cell_by_id, b.cell_by_id
    common = set(left) & set(right)
    if not common:
        found.append("no shape of work in common")
    if any(left[name].input_hash != right[name].input_hash for name in common):
        found.append("the inputs differ")
    if a.plan.data_hash and b.plan.data_hash and a.plan.data_hash != b.plan.data_hash:
        found.append("the task's data differ")
    return found


def _pairs(a: Record, b: Record) -> list[tuple[Arm, Arm]]:
    """Arms of both, by name, then by position; controls are left out."""
    left = [arm for arm in a.arms if arm.role != "control" and not arm.error]
    right = [arm for arm in b.arms if arm.role != "control" and not arm.error]
    names = {arm.name: arm for arm in right}
    pairs = [(arm, names[arm.name]) for arm in left if arm.name in names]
    if pairs:
        return pairs
    return list(zip(left, right, strict=False))


def _gated(left: Arm, right: Arm, pairs: Sequence[tuple[Arm, Arm]]) -> bool:
    """Gates are about candidates; about the baseline only where it is alone."""
    return right.role == "candidate" or not any(other.role == "candidate" for _, other in pairs)


def _changes(a: Record, b: Record, left: Arm, right: Arm, *, judged: bool) -> list[Change]:
    found = []
    for name, metric in sorted(left.metrics.items()):
        other = right.metrics.get(name)
        if other is not None and name.startswith(("size.", "parameters.", "memory.")):
            found.append(_plain(left.name, "", name, metric.value, other.value, metric.unit))
    for cell in a.plan.cells:
        if cell.id not in b.cell_by_id:
            continue
        name = headline_statistic(cell)[0]
        before, after = left.metric(name, cell.id), right.metric(name, cell.id)
        change = _plain(left.name, cell.id, name, before.value, after.value, "ms")
        groups = _ratio_draws(a, b, left.name, right.name, cell)
        if groups is not None and change.ratio is not None:
            low, high = interval(groups, a.plan.level)
            ci = (math.exp(low), math.exp(high))
            verdict = _word(ci, a.plan.delta) if judged else ""
            change = Change(**{**asdict(change), "ci": ci, "verdict": verdict})
        found.append(change)
    if left.quality and right.quality and left.quality.metric == right.quality.metric:
        unit = left.quality.unit
        found.append(
            _plain(left.name, "", f"quality.{left.quality.metric}", left.quality.value, right.quality.value, unit)
        )
    return found


def _plain(arm: str, cell: str, metric: str, before: float | None, after: float | None, unit: str) -> Change:
    ratio = after / before if before and after is not None else None
    return Change(arm, cell, metric, before, after, unit, ratio)


def _word(ci: tuple[float, float], delta: float) -> str:
    if ci[1] < 1 / (1 + delta):
        return "FASTER"
    if ci[0] > 1 + delta:
        return "SLOWER"
    return "SAME" if ci[0] >= 1 / (1 + delta) and ci[1] <= 1 + delta else "AMBIGUOUS"


def _ratio_draws(a: Record, b: Record, left: str, right: str, cell: Cell) -> np.ndarray | None:
    """Bootstrap draws of log(b / a): each record's processes are drawn on their own."""
    before, after = _logs(a.blocks, left, cell), _logs(b.blocks, right, cell)
    if not before or not after:
        return None
    return hierarchical_bootstrap(after, seed=1) - hierarchical_bootstrap(before, seed=2)


def _logs(blocks: Sequence[Block], arm: str, cell: Cell) -> list[np.ndarray]:
    """log of each block's headline figure, by process."""
    statistic = headline_statistic(cell)[1]
    groups: dict[int, list[float]] = {}
    for block in blocks:
        parts = slices_of([block], cell.id, arm)
        if parts:
            groups.setdefault(block.process, []).append(math.log(statistic(parts)))
    return [np.array(values) for values in groups.values()]


def _check(gate: Gate, a: Record, b: Record, left: Arm, right: Arm) -> Checked:
    if gate.metric in ("p50", "latency.p50") and gate.unit in ("%", "x"):
        return _check_latency(gate, a, b, left, right)
    if gate.metric == "quality":
        return _check_quality(gate, left, right)
    name = _SIZE if gate.metric == "size" else gate.metric
    before = left.metric(name, a.plan.headline)
    after = right.metric(name, b.plan.headline)
    if after.value is None or (gate.unit and before.value is None):
        reason = after.reason or before.reason
        return Checked(gate.text, right.name, None, None, None, "UNKNOWN", f"{name} is unavailable: {reason}")
    value = _in_unit(gate, before.value or 0.0, after.value)
    if value is None:
        return Checked(gate.text, right.name, None, None, None, "UNKNOWN", f"{name} was 0 before")
    return Checked(gate.text, right.name, value, None, None, "PASS" if gate.holds(value) else "FAIL")


def _in_unit(gate: Gate, before: float, after: float) -> float | None:
    if gate.unit == "":
        return after
    if gate.unit == "pp":
        return after - before
    if not before:
        return None
    return after / before if gate.unit == "x" else 100 * (after / before - 1)


def _check_latency(gate: Gate, a: Record, b: Record, left: Arm, right: Arm) -> Checked:
    cell = a.cell_by_id.get(a.plan.headline)
    draws = _ratio_draws(a, b, left.name, right.name, cell) if cell and a.plan.headline in b.cell_by_id else None
    if draws is None:
        return Checked(gate.text, right.name, None, None, None, "UNKNOWN", "no samples of the same work in both")
    values = np.exp(draws) if gate.unit == "x" else 100 * np.expm1(draws)
    return _judged(
        gate, right.name, float(np.median(values)), interval(values, a.plan.level), bootstrap_p(values, gate.bound)
    )


def _check_quality(gate: Gate, left: Arm, right: Arm) -> Checked:
    before, after = left.quality, right.quality
    if before is None or after is None or before.value is None or after.value is None:
        return Checked(gate.text, right.name, None, None, None, "UNKNOWN", "quality was not measured in both records")
    if before.metric != after.metric or before.task != after.task:
        return Checked(gate.text, right.name, None, None, None, "UNKNOWN", "quality is of different tasks")
    value: float | None
    draws: np.ndarray | None = None
    if gate.unit == "pp":
        from compresskit.bench.quality_change import difference

        value, draws = difference(before, after)
    else:
        value = _in_unit(gate, before.value, after.value)
    if value is None:
        return Checked(gate.text, right.name, None, None, None, "UNKNOWN", "quality was 0 before")
    if draws is None:
        return Checked(gate.text, right.name, value, None, None, "PASS" if gate.holds(value) else "FAIL")
    return _judged(gate, right.name, value, interval(draws), bootstrap_p(draws, gate.bound))


def _judged(gate: Gate, arm: str, value: float, ci: tuple[float, float], p: float) -> Checked:
    ends = [gate.holds(edge) for edge in ci]
    verdict: GateVerdict = "PASS" if all(ends) else "AMBIGUOUS" if any(ends) else "FAIL"
    reason = "the interval reaches over the bound" if verdict == "AMBIGUOUS" else ""
    return Checked(gate.text, arm, value, ci, p, verdict, reason)


def _corrected(checked: list[Checked]) -> list[Checked]:
    """With several gates, a failure must stay one after Holm's correction, else it can't be told."""
    tested = [item for item in checked if item.p is not None]
    if len(tested) < 2:
        return checked
    adjusted = dict(zip(map(id, tested), holm([item.p or 0.0 for item in tested]), strict=True))
    found = []
    for item in checked:
        p = adjusted.get(id(item))
        if p is None:
            found.append(item)
            continue
        weak = item.verdict == "FAIL" and p > 0.05
        reason = "not significant once corrected for the number of gates" if weak else item.reason
        verdict: GateVerdict = "AMBIGUOUS" if weak else item.verdict
        found.append(Checked(item.gate, item.arm, item.value, item.ci, p, verdict, reason))
    return found


def _hidden(item: Checked) -> Checked:
    """Across machines nothing is judged, except what is no matter of the machine."""
    if item.ci is None and item.verdict in ("PASS", "FAIL"):
        return item
    return Checked(item.gate, item.arm, item.value, item.ci, None, "AMBIGUOUS", "CROSS-MACHINE: not judged")
