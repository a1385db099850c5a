"""The models of a run: found, checked, named, hashed. Nothing is loaded here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compresskit.bench.engines import NAMES, is_engine
from compresskit.bench.engines.onnxruntime_engine import decoder_files, step_file
from compresskit.checkpoint.files import hash_file, printable
from compresskit.checkpoint.source import open_source
from compresskit.errors import UsageError

_ONNX, _OPENVINO = ".onnx", ".xml"
_EXPORTED = ("onnx/model.onnx", "model.onnx", "onnx/encoder_model.onnx", "encoder_model.onnx")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "config.json")
_GENERATIVE = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Subject:
    """One model in one engine.

    Args:
        name: unique in the run.
        label: what the user wrote, without folders.
        path: what the engine loads: a folder or an ``.onnx`` file.
        config: of the checkpoint, or of the one around an ONNX file; empty without one.
        fingerprint: sha256 over what is computed with.
        files: file -> ``sha256:…``.
        served: what a file is for -> bytes of the files needed to serve.
        tokenizer: folder to take the tokenizer from, or None.
        recipe, steps: what made the checkpoint, as its report says.
    """

    name: str
    label: str
    path: Path
    engine: str
    config: dict[str, Any]
    fingerprint: str
    files: dict[str, str]
    served: dict[str, int]
    architecture: str = ""
    revision: str | None = None
    compressed: bool = False
    tokenizer: Path | None = None
    recipe: str | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def generative(self) -> bool:
        """Whether it writes text token by token."""
        return self.architecture.endswith(_GENERATIVE) or step_file(self.path).is_file()


def find(specs: Sequence[str], engine: str | None) -> list[Subject]:
    """The subjects in the order of ``specs``, each with a name of its own. The same model twice gives two subjects.

    Args:
        specs: a checkpoint's folder, ``pkg:NAME``, a hub id, an ``.onnx`` file; ``ENGINE=`` before it chooses the
            engine for it alone.
        engine: for all that name none; by default torch for checkpoints, onnxruntime for ONNX files.

    Raises:
        UsageError: CK-B001 nothing given, CK-B002 no such ONNX file, CK-B004 no such engine.
        ModelError: whatever is wrong with a checkpoint.
    """
    if not specs:
        raise UsageError(
            "CK-B001", "there is nothing to measure", fix="give a model: a folder, a hub id, an .onnx file"
        )
    found = [_one(spec, engine) for spec in specs]
    return _named(found)


def _one(spec: str, engine: str | None) -> Subject:
    prefix, equals, rest = spec.partition("=")
    if equals and is_engine(prefix):
        spec, engine = rest, prefix
    if engine is not None and not is_engine(engine):
        raise UsageError("CK-B004", f"there is no engine {engine!r}", fix=f"engines: {', '.join(NAMES)}")
    if spec.endswith(_ONNX):
        if engine == "torch":
            raise UsageError("CK-B005", "torch can't run an ONNX file", where=printable(spec), fix="leave --engine out")
        return onnx_subject(Path(spec), engine or "onnxruntime")
    if spec.endswith(_OPENVINO):
        return onnx_subject(Path(spec), "openvino")
    subject = _checkpoint(spec)
    if engine in (None, "torch"):
        return subject
    if engine not in NAMES:
        return replace(subject, engine=engine)
    exported = next((subject.path / name for name in _EXPORTED if (subject.path / name).is_file()), None)
    if exported is None:
        raise UsageError(
            "CK-B002",
            f"{printable(spec)} holds no ONNX file for {engine}",
            fix=f"make it: compresskit export {printable(spec)} --onnx {printable(spec)}/onnx/model.onnx",
        )
    return replace(onnx_subject(exported, engine), label=subject.label)


def _checkpoint(spec: str) -> Subject:
    source = open_source(spec)
    fingerprint = source.fingerprint
    report = _report(source.path)
    return Subject(
        name="",
        label=_label(spec),
        path=source.path,
        engine="torch",
        config=source.config,
        fingerprint=fingerprint,
        files={name: f"sha256:{value}" for name, value in sorted(source.hashes().items())},
        served=dict(source.disk_report),
        architecture=source.architecture,
        revision=source.revision,
        compressed=source.compressed,
        tokenizer=source.path,
        recipe=_hash_of(source.path / "recipe.yaml"),
        steps=report,
    )


def onnx_subject(path: Path, engine: str) -> Subject:
    """An ONNX file (or OpenVINO's own) with what lies beside it: weights, the decoder's second file, the tokenizer."""
    if not path.is_file():
        raise UsageError("CK-B002", f"there is no file {printable(path)}", fix="make it with `compresskit export`")
    parts = [path, path.with_name(f"{path.name}.data"), step_file(path), *decoder_files(path)]
    if path.suffix == _OPENVINO:
        parts = [path, path.with_suffix(".bin")]
    parts = [part for part in parts if part.is_file()]
    hashes = {part.name: hash_file(part)[0] for part in parts}
    digest = hashlib.sha256("\n".join(f"{name}\0{value}" for name, value in sorted(hashes.items())).encode())
    home = next((folder for folder in (path.parent, path.parent.parent) if (folder / "config.json").is_file()), None)
    config = json.loads((home / "config.json").read_text(encoding="utf-8")) if home else {}
    beside = [home / name for name in _TOKENIZER_FILES if (home / name).is_file()] if home else []
    return Subject(
        name="",
        label=path.name if home is None else f"{home.name}/{path.name}",
        path=path,
        engine=engine,
        config=config,
        fingerprint=digest.hexdigest(),
        files={name: f"sha256:{value}" for name, value in sorted(hashes.items())},
        served={
            "weights": sum(part.stat().st_size for part in parts),
            "tokenizer and config": sum(file.stat().st_size for file in beside),
        },
        architecture=(config.get("architectures") or [""])[0],
        compressed="quantization_config" in config,
        tokenizer=home,
        recipe=_hash_of(home / "recipe.yaml") if home else None,
    )


def _label(spec: str) -> str:
    """The last part of a path; a hub id or package as it is."""
    return Path(spec).resolve().name if Path(spec).exists() else spec


def _named(subjects: list[Subject]) -> list[Subject]:
    """Names from labels, with the engine where several are used, and a number where they would be equal."""
    engines = {subject.engine for subject in subjects}
    taken: dict[str, int] = {}
    found = []
    for subject in subjects:
        name = f"{subject.label} ({subject.engine})" if len(engines) > 1 else subject.label
        taken[name] = taken.get(name, 0) + 1
        found.append(replace(subject, name=name if taken[name] == 1 else f"{name} #{taken[name]}"))
    return found


def _report(folder: Path) -> list[dict[str, Any]]:
    """The steps that the checkpoint's report tells of."""
    path = folder / "report.json"
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    steps = content.get("steps") if isinstance(content, dict) else None
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _hash_of(path: Path) -> str | None:
    return f"sha256:{hash_file(path)[0]}" if path.is_file() else None
