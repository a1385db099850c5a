"""What ``apply`` gives back, and what ``--json`` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedModel


@dataclass
class Result:
    """The outcome of one run.

    ``before`` and ``after`` hold ``parameters`` and ``disk_bytes`` (files needed to serve: weights, config,
    tokenizer; MB = 10^6 bytes). ``reload_max_abs_diff`` compares the live model with the saved one, reopened in a
    fresh process. ``fidelity`` compares the saved model with the source on held-out text. ``onnx`` describes the
    exported file, where the recipe asks for one.
    """

    output: str | None
    native: bool
    steps: list[dict[str, Any]]
    before: dict[str, int]
    after: dict[str, int]
    reload_max_abs_diff: float | None
    fidelity: dict[str, Any]
    warnings: list[str]
    seconds: float
    quality: dict[str, Any] | None = None
    gates: list[dict[str, Any]] = field(default_factory=list)
    onnx: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    model: PreTrainedModel | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the live model is left out."""
        model, self.model = self.model, None
        try:
            content = asdict(self)
        finally:
            self.model = model
        del content["model"]
        return content

    @property
    def size_ratio(self) -> float:
        """After over before, on disk."""
        return self.after["disk_bytes"] / self.before["disk_bytes"]
