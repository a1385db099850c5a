"""README's tables of methods, generated: ``python -m tests.contract.matrix`` rewrites them in place."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

from compresskit import registry
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.quantization import _bitsandbytes
from tests.contract.conformance import ACTIVE, ARCHITECTURES, model_of

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"(<!-- (?P<name>methods|matrix) -->\n).*?(<!-- end -->)", re.DOTALL)


def methods_table() -> str:
    """One row a method: what it does, what really shrinks, what it needs."""
    lines = ["| method | what it does | really shrinks | needs |", "|---|---|---|---|"]
    for name, cls in registry.methods().items():
        first = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split()).rstrip(".")
        lines.append(
            f"| `{name}` | {first} | {', '.join(sorted(cls.shrinks)) or '–'} | {', '.join(sorted(cls.needs)) or '–'} |"
        )
    return "\n".join(lines) + "\n"


def matrix_table() -> str:
    """Method by architecture: applied, or the number of the reason below why not; optional packages at hand."""
    reasons: dict[str, int] = {}
    lines = ["| | " + " | ".join(ARCHITECTURES) + " |", "|---" * (len(ARCHITECTURES) + 1) + "|"]
    outcomes = {name: model_of(name) for name in ARCHITECTURES}
    for method_name, cls in registry.methods().items():
        cells = []
        for name in ARCHITECTURES:
            try:
                with mock.patch.object(_bitsandbytes, "installed", return_value=True):
                    resolve(outcomes[name], cls.model_validate(ACTIVE[method_name]))
                cells.append("yes")
            except RecipeError as error:
                why = error.why.replace(type(outcomes[name]).__name__, "the model")
                cells.append(str(reasons.setdefault(why, len(reasons) + 1)))
        lines.append(f"| `{method_name}` | " + " | ".join(cells) + " |")
    notes = [f"{number}. {reason[:1].upper()}{reason[1:]}" for reason, number in reasons.items()]
    return "\n".join([*lines, "", *notes]) + "\n"


def render(text: str) -> str:
    """``text`` with both tables made anew."""
    tables = {"methods": methods_table(), "matrix": matrix_table()}
    return BLOCK.sub(lambda match: f"{match[1]}{tables[match['name']]}{match[3]}", text)


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
