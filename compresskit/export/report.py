"""What an export gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compresskit.export.audit import Audit
from compresskit.export.parity import Case


@dataclass(frozen=True)
class Graph:
    """One exported graph: its file, inputs and outputs with dimensions, and what the audit found."""

    file: Path
    bytes: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    audit: Audit


@dataclass(frozen=True)
class ExportReport:
    """The published files and the proof that they compute what the model computes.

    Args:
        path: the main file, of an encoder-decoder the encoder. graphs: all of them by name.
        files: bytes of everything written, by file name, from stat.
        held_to: float, token or tensor: the rule of the comparison.
        parity: one case per batch and output.
        warnings: sentences for the user.
    """

    path: Path
    profile: str
    opset: int
    held_to: str
    graphs: dict[str, Graph]
    files: dict[str, int]
    parity: list[Case]
    seconds: float
    warnings: list[str]

    @property
    def bytes(self) -> int:
        """Of the main graph with its external data, if any; of an encoder and the decoder's first pass together."""
        main = [graph.file.name for name, graph in self.graphs.items() if "with_past" not in name]
        return sum(size for name, size in self.files.items() if name.removesuffix(".data") in main)

    @property
    def max_difference(self) -> float:
        """Largest difference of any case, relative to the largest output where that is above 1."""
        return max(case.difference for case in self.parity)

    @property
    def cosine_mean(self) -> float:
        """The smallest mean cosine of any case."""
        return min(case.cosine_mean for case in self.parity)

    @property
    def cosine_min(self) -> float:
        """The smallest cosine of any token."""
        return min(case.cosine_min for case in self.parity)

    def moved(self, folder: Path) -> ExportReport:
        """The same after its files went to ``folder``."""
        graphs = {name: replace(graph, file=folder / graph.file.name) for name, graph in self.graphs.items()}
        return replace(self, path=folder / self.path.name, graphs=graphs)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "output": str(self.path),
            "bytes": self.bytes,
            "profile": self.profile,
            "opset": self.opset,
            "files": self.files,
            "parity": {
                "held_to": self.held_to,
                "max_difference": self.max_difference,
                "cosine_mean": self.cosine_mean,
                "cosine_min": self.cosine_min,
                "cases": [asdict(case) for case in self.parity],
            },
            "graphs": {
                name: {
                    "file": graph.file.name,
                    "bytes": graph.bytes,
                    "inputs": graph.inputs,
                    "outputs": graph.outputs,
                    **asdict(graph.audit),
                }
                for name, graph in self.graphs.items()
            },
            "seconds": self.seconds,
            "warnings": self.warnings,
        }
