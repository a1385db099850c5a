"""The tables of a run, as plain rows: the command line, the model card and the page all draw these."""

from __future__ import annotations

from typing import Any

from compresskit.report.numbers import duration, fidelity_text, megabytes, millions

STEP_COLUMNS = ("step", "sites", "parameters", "bytes", "fidelity", "time")


def step_rows(steps: list[dict[str, Any]], *, times: bool = False) -> list[list[str]]:
    """One row a step: method, number of sites, whole-model parameters and bytes after it, fidelity to the source."""
    rows = []
    for step in steps:
        name = step["method"] + (f" + {step['recover']['method']}" if step.get("recover") else "")
        skipped = f" ({len(step['skipped'])} skipped)" if step["skipped"] else ""
        row = [
            name,
            f"{len(step['sites'])}{skipped}",
            millions(step["parameters"]),
            megabytes(step["bytes"]),
            fidelity_text(step["fidelity"]),
        ]
        rows.append([*row, duration(step["seconds"])] if times else row)
    return rows


def summary_rows(result: dict[str, Any]) -> list[list[str]]:
    """The final table: what, source, result, ratio."""
    before, after = result["before"], result["after"]
    rows = [
        [
            "files to serve",
            megabytes(before["disk_bytes"]),
            megabytes(after["disk_bytes"]),
            f"{after['disk_bytes'] / before['disk_bytes']:.2f}x",
        ],
        [
            "parameters",
            millions(before["parameters"]),
            millions(after["parameters"]),
            f"{after['parameters'] / before['parameters']:.2f}x",
        ],
        ["fidelity", "", fidelity_text(result["fidelity"]), ""],
    ]
    rows += [
        [f"  on {name} text", "", fidelity_text(values), ""]
        for name, values in sorted(result["fidelity"].get("domains", {}).items())
    ]
    quality = result.get("quality")
    if quality:
        change = quality["after"] - quality["before"]
        rows.append([quality["metric"], f"{quality['before']:.2f}", f"{quality['after']:.2f}", f"{change:+.2f}"])
    if result["reload_max_abs_diff"] is not None:
        rows.append(["reload in a fresh process", "", f"max difference {result['reload_max_abs_diff']:.1e}", ""])
    onnx = result.get("onnx")
    if onnx:
        share = f"{onnx['bytes'] / before['disk_bytes']:.2f}x"
        rows.append([f"ONNX ({onnx['profile']})", "", megabytes(onnx["bytes"]), share])
    rows.append(["loads without compresskit", "", "yes" if result["native"] else "no", ""])
    return rows
