"""How good the outputs of the timed run were: the task's metric, and the change against the baseline in pairs."""

from __future__ import annotations

from typing import Any

from compresskit.bench.record import Arm
from compresskit.report.content import Cell, Section, Table
from compresskit.report.foreign import interval, mapping, number, text
from compresskit.report.numbers import plain_number, with_interval
from compresskit.report.view import View

# Key under ``against``, column, unit, number of digits.
_MEASURES = (
    ("flips", "answers flipped", " %", 2),
    ("p_mcnemar", "p (McNemar)", "", 3),
    ("kl_mean", "KL mean, nats", "", 4),
    ("kl_p95", "KL 95 %, nats", "", 4),
    ("top1_agreement", "same top answer", " %", 2),
    ("cosine_mean", "cosine mean", "", 4),
    ("cosine_min", "cosine least", "", 4),
)


def quality(view: View) -> Section | None:
    """One row an arm; columns that no arm fills are left out. None without a task."""
    scored = [arm for arm in view.arms if arm.quality is not None and arm.quality.status != "unavailable"]
    if not scored:
        return None
    against = {arm.name: mapping(arm.quality.against) for arm in scored if arm.quality is not None}
    used = [each for each in _MEASURES if any(number(row.get(each[0])) is not None for row in against.values())]
    worst = any(mapping(row.get("worst_class")) for row in against.values())
    columns = ["model", "task", "score", "n", "change", *(name for _, name, _, _ in used)]
    rows = [_row(view, arm, against[arm.name], used, worst) for arm in scored]
    lead = (
        "Scored on the outputs of the timed run. The change is against the baseline on the same examples, drawn again"
        " in pairs, so its interval is narrower than those of the scores."
    )
    table = Table([*columns, "worst class"] if worst else columns, rows, cards=True)
    return Section("Quality", lead, tables=[table])


def _row(
    view: View, arm: Arm, against: dict[str, Any], used: list[tuple[str, str, str, int]], worst: bool
) -> list[Cell]:
    found = arm.quality
    if found is None:
        return []
    change, span = number(against.get("difference")), interval(against.get("ci"))
    cells = [
        Cell(view.shown(arm)),
        Cell(f"{text(found.metric, 40)} on {text(found.task, 40)}"),
        Cell(with_interval(number(found.value), interval(found.ci), text(found.unit, 12)), "number"),
        Cell(text(found.n), "number"),
        _change(change, span, against.get("higher_is_better") is not False),
    ]
    for key, _, unit, digits in used:
        value = number(against.get(key))
        cells.append(Cell("–" if value is None else f"{value:.{digits}f}{unit}", "number"))
    if worst:
        lost = mapping(against.get("worst_class"))
        drop = number(lost.get("drop"))
        says = (
            "–"
            if drop is None
            else f"{text(lost.get('name'), 40)}: −{plain_number(drop)} points of {text(lost.get('rows'), 10)}"
        )
        cells.append(Cell(says))
    return cells


def _change(change: float | None, span: tuple[float, float] | None, higher_is_better: bool) -> Cell:
    """Green or red only where the interval leaves zero out."""
    if change is None:
        return Cell("–", "number")
    if span is None:
        return Cell(f"{change:+.3f}", "number")
    shown = f"{change:+.3f} [{span[0]:+.3f}, {span[1]:+.3f}]"
    sure = span[0] > 0 or span[1] < 0
    better = (change > 0) == higher_is_better
    return Cell(shown, f"number {'faster' if better else 'slower'}" if sure else "number")
