"""The model card, README.md of a compressed checkpoint: the measured table, how to load it, what was not measured."""

from __future__ import annotations

from typing import Any

import yaml

from compresskit.report.numbers import fidelity_text, megabytes, millions
from compresskit.report.tables import step_rows

NOT_MEASURED = "latency (run `compresskit bench run`), and quality on a task unless `evaluate` is listed above"


def model_card(result: dict[str, Any], *, architecture: str) -> str:
    """Markdown for ``result``, the content of report.json. Text from outside is escaped."""
    front = yaml.safe_dump({"library_name": "transformers", "tags": ["compresskit", "compressed"]}, sort_keys=True)
    before, after = result["before"], result["after"]
    ratio = after["disk_bytes"] / before["disk_bytes"]
    lines = [
        "---",
        front.strip(),
        "---",
        "# Compressed model",
        "",
        f"Made from {escaped(result['source'])} by compresskit.",
        "",
        "| | source | this |",
        "|---|---|---|",
        f"| files to serve | {megabytes(before['disk_bytes'])} | {megabytes(after['disk_bytes'])} ({ratio:.2f}x) |",
        f"| parameters | {millions(before['parameters'])} | {millions(after['parameters'])} |",
        f"| fidelity to the source | – | {fidelity_text(result['fidelity'])} |",
    ]
    for name, values in sorted(result["fidelity"].get("domains", {}).items()):
        lines.append(f"| … on {escaped(name)} text | – | {fidelity_text(values)} |")
    if result.get("quality"):
        quality = result["quality"]
        lines.append(f"| {escaped(quality['metric'])} | {quality['before']:.2f} | {quality['after']:.2f} |")
    lines += ["", "## Load it", "", "```python", *_usage(result["native"], architecture), "```", "", "## Steps", ""]
    lines += ["| step | sites | parameters | bytes | fidelity |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in step_rows(result["steps"])]
    if result["warnings"]:
        lines += ["", "## Warnings", "", *(f"- {escaped(text)}" for text in result["warnings"])]
    lines += ["", "## Not measured here", "", NOT_MEASURED + ".", ""]
    return "\n".join(lines)


def _usage(native: bool, architecture: str) -> list[str]:
    lines = [] if native else ["import compresskit  # lets transformers rebuild the compressed layers"]
    return [*lines, f"from transformers import {architecture}", "", f'model = {architecture}.from_pretrained("PATH")']


def escaped(text: str) -> str:
    """Markdown and HTML in foreign text stay text."""
    for char, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(char, written)
    return " ".join(text.split())
