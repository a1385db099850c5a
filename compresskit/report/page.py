"""One self-contained HTML page of one apply: no network, no script, everything from outside escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from compresskit.errors import DataError
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


def read_report(path: Path) -> dict[str, Any]:
    """The content of ``report.json`` of a compressed checkpoint.

    Raises:
        DataError: CK-D040, if there is none, or it is not one of ours.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("CK-D040", "there is no readable report", where=str(file), why=str(error)) from error
    missing = {"before", "after", "steps", "fidelity", "warnings", "recipe", "source", "gates"} - set(content or ())
    if not isinstance(content, dict) or missing:
        raise DataError(
            "CK-D040", "this is not the report of an apply", where=str(file), why=f"without {sorted(missing)}"
        )
    return content
