"""Gates: what a result must reach, written with a unit, and checked against what was measured.

``quality: ">= -1.0pp"``, ``size: "<= 0.25x"``, ``latency.p50: "<= 0.60x"``; the same in one piece on a command line,
``"latency.p50<=-10%"``. Units are obligatory, since 0.9 of a score and 0.9 points of it are easily confused.

========================  =======================================================================
``pp``                    change of a score in percentage points, after minus before
``x``                     after divided by before
``%``                     relative change, 100 (after / before - 1)
``kB MB GB KiB MiB GiB``  size after, in bytes
``us ms s``               time after
``abs``                   the value after, as measured
========================  =======================================================================
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compresskit.errors import RecipeError

Kind = Literal["fraction", "points", "bytes", "seconds", "plain"]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
UNITS = ("pp", "x", "%", *_BYTES, *_SECONDS, "abs")
_NAME = r"[a-z][a-z0-9_]{0,63}(?:\.[a-z0-9_]{1,64}){0,4}"
_BOUND = r"\s*(<=|>=|<|>)\s*([-+]?[0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([A-Za-z%]{0,8})\s*"
NAME_PATTERN = re.compile(_NAME)
BOUND_PATTERN = re.compile(_BOUND)
_ARGUMENT = re.compile(rf"\s*({_NAME})({_BOUND})")
_GRAMMAR = 'write a comparison, a number and a unit, as in ">= -1.0pp", "<= 0.25x" or "<= 20MB"'


@dataclass(frozen=True)
class Measured:
    """One metric of the source and of the result.

    Args:
        before: of the source; None where only the result was measured.
        after: of the result.
        kind: ``fraction`` a score in 0..1, ``points`` a score in 0..100, ``bytes``, ``seconds``, or ``plain``.
    """

    after: float
    before: float | None = None
    kind: Kind = "plain"


@dataclass(frozen=True)
class Gate:
    """A bound on one metric."""

    metric: str
    comparison: str
    bound: float
    unit: str

    def __str__(self) -> str:
        return f"{self.metric} {self.text}"

    @property
    def text(self) -> str:
        """The bound as in a recipe: ``>= -1.0pp``."""
        return f"{self.comparison} {self.bound!r}{'' if self.unit in ('pp', 'x', '%') else ' '}{self.unit}"

    def check(self, measured: Measured) -> Verdict:
        """Compare.

        Raises:
            RecipeError: CK-G003, if the unit doesn't fit the metric or the source wasn't measured.
        """
        found = self._in_unit(measured)
        # A comparison with NaN is false: what could not be measured doesn't pass.
        return Verdict(self, found, _COMPARISONS[self.comparison](found, self.bound))

    def _in_unit(self, measured: Measured) -> float:
        if self.unit == "abs":
            return measured.after
        for units, kind in ((_BYTES, "bytes"), (_SECONDS, "seconds")):
            if self.unit in units:
                if measured.kind != kind:
                    raise self._misfit(f"{self.unit} measures {kind}, and {self.metric} is not given in {kind}")
                return measured.after / units[self.unit]
        if measured.before is None:
            raise self._misfit(f"{self.unit} compares with the source, and its {self.metric} wasn't measured")
        if self.unit == "pp":
            scale = {"fraction": 100.0, "points": 1.0}.get(measured.kind)
            if scale is None:
                raise self._misfit(f"pp is for scores, and {self.metric} is none")
            return scale * (measured.after - measured.before)
        ratio = measured.after / measured.before if measured.before else float("nan")
        return ratio if self.unit == "x" else 100.0 * (ratio - 1.0)

    def _misfit(self, why: str) -> RecipeError:
        return RecipeError("CK-G003", f"the gate {str(self)!r} can't be checked", why=why)


@dataclass(frozen=True)
class Verdict:
    """A gate, what was found in its unit, and whether it holds."""

    gate: Gate
    found: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.gate} {'holds' if self.passed else 'missed'}: {self.found:.4g}{self.gate.unit}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "metric": self.gate.metric,
            "gate": self.gate.text,
            "found": self.found,
            "unit": self.gate.unit,
            "passed": self.passed,
        }


def parse_gate(metric: str, text: object) -> Gate:
    """A gate from a recipe's key and value.

    Raises:
        RecipeError: CK-R015.
    """
    if not NAME_PATTERN.fullmatch(metric):
        raise RecipeError("CK-R015", f"{metric[:80]!r} is not the name of a metric", fix="as in quality, latency.p50")
    match = BOUND_PATTERN.fullmatch(text) if isinstance(text, str) and len(text) <= 64 else None
    if match is None:
        raise RecipeError("CK-R015", f"{str(text)[:80]!r} is not a gate", fix=_GRAMMAR)
    return _gate(metric, *match.groups())


def parse_gate_argument(text: str) -> Gate:
    """A gate in one piece: ``size<=0.25x``.

    Raises:
        RecipeError: CK-R015.
    """
    match = _ARGUMENT.fullmatch(text) if len(text) <= 512 else None
    if match is None:
        raise RecipeError("CK-R015", f"{text[:80]!r} is not a gate", fix=f'as in "size<=0.25x"; {_GRAMMAR}')
    metric, _, comparison, bound, unit = match.groups()
    return _gate(metric, comparison, bound, unit)


def _gate(metric: str, comparison: str, bound: str, unit: str) -> Gate:
    if unit not in UNITS:
        raise RecipeError(
            "CK-R015",
            f"the gate on {metric} has the unit {unit!r}" if unit else f"the gate on {metric} has no unit",
            fix=f"units: {', '.join(UNITS)}",
        )
    return Gate(metric, comparison, float(bound), unit)


def check_gates(
    gates: Sequence[Gate], measured: Mapping[str, Measured], *, max_drop: float | None = None
) -> list[Verdict]:
    """Check every gate; ``max_drop`` adds ``quality >= -max_drop pp``.

    Raises:
        RecipeError: CK-G002 for a metric that isn't measured; CK-G003 for a unit that doesn't fit.
    """
    wanted = [*gates, *([] if max_drop is None else [Gate("quality", ">=", -abs(max_drop), "pp")])]
    verdicts = []
    for gate in wanted:
        if gate.metric not in measured:
            close = difflib.get_close_matches(gate.metric, measured, n=1)
            raise RecipeError(
                "CK-G002",
                f"the gate {str(gate)!r} is on a metric that isn't measured",
                why=f"measured: {', '.join(sorted(measured)) or 'nothing'}",
                fix="add `evaluate:` to the recipe"
                if gate.metric == "quality"
                else f"did you mean {close[0]!r}?"
                if close
                else "",
            )
        verdicts.append(gate.check(measured[gate.metric]))
    return verdicts
