"""One self-contained HTML page of one apply: no network, no script, everything from outside escaped."""

from __future__ import annotations

from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from compresskit.report.card import NOT_MEASURED
from compresskit.report.numbers import fidelity_text, megabytes
from compresskit.report.tables import STEP_COLUMNS, step_rows, summary_rows


def apply_page(result: dict[str, Any]) -> str:
    """HTML for ``result``, the content of report.json."""
    environment = Environment(
        loader=PackageLoader("compresskit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    first = max(1, result["before"]["disk_bytes"])
    steps = [
        {"cells": cells, "share": min(100, round(100 * step["bytes"] / first))}
        for cells, step in zip(step_rows(result["steps"], times=True), result["steps"], strict=True)
    ]
    skipped = [
        (step["method"], path or "the model", reason)
        for step in result["steps"]
        for path, reason in sorted(step["skipped"].items())
    ]
    after = result["after"]["disk_bytes"]
    return environment.get_template("apply.html.j2").render(
        source=result["source"],
        headline=f"{megabytes(after)} of {megabytes(first)}, {fidelity_text(result['fidelity'])}",
        warnings=result["warnings"],
        summary=summary_rows(result),
        columns=STEP_COLUMNS,
        steps=steps,
        gates=result["gates"],
        skipped=skipped,
        recipe=yaml.safe_dump(result["recipe"], sort_keys=False, allow_unicode=True),
        not_measured=NOT_MEASURED,
    )
