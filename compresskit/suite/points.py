"""Making the points of a suite: each recipe applied, saved, reopened, exported; the live model scored before that."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.source import Source
from compresskit.export import export_onnx
from compresskit.export.seq2seq import ENCODER_FILE
from compresskit.pipeline import Options, apply
from compresskit.recipe import Recipe
from compresskit.suite.peers.base import put_beside
from compresskit.suite.schema import TaskSettings
from compresskit.tasks import measure

Tell = Callable[[float, str], None]

_PROFILES = {"onnxruntime": "fast", "openvino": "portable"}
_MODEL = "model.onnx"


@dataclass
class Point:
    """One compressed model, as files.

    Args:
        specs: engine -> what ``bench run`` takes.
        live: task -> score of the model as the last step left it, before it was saved.
        report: what ``apply`` found: sizes, fidelity, seconds.
    """

    name: str
    specs: dict[str, str]
    live: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return vars(self)


def make_point(
    name: str, recipe: Recipe, source: Source, folder: Path, engines: Sequence[str], tasks: Sequence[TaskSettings], *,
    seed: int, threads: int,
) -> Point:  # fmt: skip
    """Apply ``recipe``, save, export for each engine. ``folder`` is this point's own, and emptied.

    Raises:
        CompressKitError: the recipe can't be applied or exported.
    """
    if folder.exists():
        shutil.rmtree(folder)
    checkpoint = folder / name
    result = apply(str(source.path), recipe, checkpoint, options=Options(seed=seed, threads=threads))
    # Scored in torch, to be compared with torch after reloading; in other engines it would only cost time.
    live, model = {}, result.model
    if "torch" in engines and model is not None:
        tokenizer, files = source.load_tokenizer(), source.sentence_transformer
        live = {task.task: measure(model, tokenizer, task, files).value for task in tasks}
    specs = export_for(engines, checkpoint, source, folder)
    kept = ("before", "after", "reload_max_abs_diff", "fidelity", "seconds", "warnings")
    report = {key: value for key, value in result.to_dict().items() if key in kept}
    return Point(name, specs, live, report)


def export_for(engines: Sequence[str], checkpoint: Path, source: Source, folder: Path) -> dict[str, str]:
    """The checkpoint itself for torch, and an ONNX file in the profile of each other engine."""
    specs = {}
    for engine in engines:
        if engine == "torch":
            specs[engine] = f"torch={checkpoint}"
            continue
        home = folder / engine
        put_beside(source.path, home)
        report = export_onnx(
            load_model(checkpoint),
            home / _MODEL,
            tokenizer=source.load_tokenizer(),
            sentence_transformer=source.sentence_transformer,
            profile=_PROFILES[engine],  # type: ignore[arg-type]
        )
        specs[engine] = f"{engine}={report.path}"
    return specs


def make_baseline(source: Source, folder: Path, engines: Sequence[str], *, plain: bool) -> dict[str, str]:
    """Specs of the source by engine; ``plain`` holds an export without fused attention, for peers to start from."""
    specs = {"torch": f"torch={source.path}"}
    wanted = {engine: _PROFILES[engine] for engine in engines if engine != "torch"}
    wanted.setdefault("onnxruntime", "fast")
    for engine, profile in wanted.items():
        home = folder / "fp32" / engine
        if not _exported(home).is_file():
            _export_source(source, home, profile, opset=None)
        specs[engine] = f"{engine}={_exported(home)}"
    if plain:
        home = folder / "fp32" / "plain"
        if not (home / _MODEL).is_file():
            _export_source(source, home, "fast", opset=21)
        specs["plain"] = str(home / _MODEL)
    return specs


def _exported(home: Path) -> Path:
    """The main file of an export into ``home``: of an encoder-decoder the encoder."""
    encoder = home / f"{ENCODER_FILE}.onnx"
    return encoder if encoder.is_file() else home / _MODEL


def _export_source(source: Source, home: Path, profile: str, *, opset: int | None) -> None:
    put_beside(source.path, home)
    export_onnx(
        source.load_model(dtype="float32"),
        home / _MODEL,
        tokenizer=source.load_tokenizer(),
        sentence_transformer=source.sentence_transformer,
        profile=profile,  # type: ignore[arg-type]
        opset=opset,
    )
