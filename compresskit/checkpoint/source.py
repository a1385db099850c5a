"""The model that a run starts from: found, checked file by file before transformers sees it, then loaded strictly."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint import contents, manifest, sentence_transformer
from compresskit.checkpoint.config_scan import check_config, check_tokenizer_pattern, refuse_code
from compresskit.checkpoint.contents import Role
from compresskit.checkpoint.files import Identity, hash_file, hub_sha256, printable, regular_file
from compresskit.checkpoint.locate import Location, locate
from compresskit.checkpoint.safetensors_header import Header, read_header
from compresskit.checkpoint.strict_json import read_json
from compresskit.errors import ModelError, ResourceError, SecurityError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from compresskit.checkpoint.sentence_transformer import SentenceTransformerFiles

_logger = logging.getLogger(__name__)

_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True)
class SourceFile:
    """One file of the model, as it was when it was checked."""

    name: str
    path: Path
    role: Role
    identity: Identity


class Source:
    """A model's folder that passed all checks; made by ``open_source``.

    Attributes:
        spec: what the user wrote.
        path: the folder.
        revision: the commit of a model of the Hub, else None.
        config: the content of config.json.
        architecture: the class that the model was saved from; ``AutoModel`` where the config names none.
        files: the model's files by relative name.
        tensors: what the weight files hold, by name as stored.
        sentence_transformer: pooling and so on, or None for another kind of model.
        notices: sentences for the user about what was left aside.
    """

    def __init__(self, spec: str, location: Location, *, trust_remote_code: bool = False) -> None:
        self.spec, self.path, self.revision = spec, location.folder, location.revision
        self.trust_remote_code = trust_remote_code
        self.notices: list[str] = []
        self._any_link = location.any_link
        self._hashes: dict[str, str] = {}
        self._json: dict[str, tuple[Any, str, Identity]] = {}
        contents.refuse_missing(self.path)
        self.config: dict[str, Any] = check_config(self._read("config.json"), printable(self.path / "config.json"))
        names: list[str] = self.config.get("architectures") or ["AutoModel"]
        self.architecture = names[0]
        self.sentence_transformer: SentenceTransformerFiles | None = sentence_transformer.describe(
            self._read_if_there, printable(self.path), trusted=trust_remote_code
        )
        headers, self.tensors = contents.read_weights(self.path, self._read, any_link=self._any_link)
        self.files: Mapping[str, SourceFile] = self._collect(headers)
        self._note_pickles()
        self._check_manifest()

    @property
    def compressed(self) -> bool:
        """Whether compresskit wrote a layout into the config."""
        return "quantization_config" in self.config

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names and contents of config and weights."""
        digest = hashlib.sha256()
        for name, file in sorted(self.files.items()):
            if file.role == "weights" or name == "config.json":
                digest.update(f"{name}\0{self._sha256(file)}\n".encode())
        return digest.hexdigest()

    def hashes(self) -> dict[str, str]:
        """sha256 of the files that were hashed so far, by name."""
        return dict(self._hashes)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the files needed to serve the model: weights, config, tokenizer."""
        return sum(self.disk_report.values())

    @property
    def disk_report(self) -> dict[str, int]:
        """``disk_bytes`` by what the files are for."""
        found: dict[str, int] = dict.fromkeys(contents.SERVED, 0)
        for file in self.files.values():
            if file.role in found:
                found[file.role] += file.identity.size
        return found

    def load_model(self, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu") -> PreTrainedModel:
        """The model in evaluation mode, every tensor of it from the files, finite, and none left over.

        Args:
            dtype: floating type to load in, such as ``"float32"``; by default the saved one.

        Raises:
            ModelError: CK-M007, CK-M010 to CK-M018.
            UsageError: CK-M023, no such type.
        """
        from compresskit.checkpoint.strict_load import load_strict

        _ = self.fingerprint  # hashes, and compares with the Hub's, before anything is loaded
        self._require_untouched("before it was loaded")
        model = load_strict(
            self.path,
            self.config,
            self.tensors,
            dtype=dtype,
            device=device,
            trust_remote_code=self.trust_remote_code,
        )
        self._require_untouched("while it was loaded")
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, or None if it has no tokenizer files.

        Raises:
            ModelError: CK-M019, the files are there and can't be used.
        """
        if not any(file.role == "tokenizer" for file in self.files.values()):
            return None
        from compresskit.checkpoint.strict_load import load_tokenizer

        return load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)

    def companion_files(self) -> dict[str, Path]:
        """Files that travel along with a compressed model: all but weights and config, by relative name."""
        return {
            name: file.path
            for name, file in self.files.items()
            if file.role != "weights" and name not in ("config.json", contents.INDEX)
        }

    def verify_unchanged(self) -> None:
        """Compare the files with what they were when they were opened; touching a file is no change.

        Raises:
            ModelError: CK-M017.
        """
        for file in self.files.values():
            try:
                now = Identity.of(file.path.stat())
                known = self._hashes.get(file.name)
                same = now == file.identity or (known is not None and hash_file(file.path)[0] == known)
            except FileNotFoundError:
                same = False
            if not same:
                raise self._changed(file, "during the run")

    def _read(self, name: str) -> Any:
        """The value of a JSON file of the model, scanned; read once."""
        if name not in self._json:
            try:
                path = regular_file(self.path, name, any_link=self._any_link)
                self._json[name] = read_json(path, contents.json_limit(name))
            except FileNotFoundError:
                raise self._gone(name) from None
            value = self._json[name][0]
            if name == "tokenizer.json":
                check_tokenizer_pattern(value, printable(path))
            elif name not in contents.TABLES:
                refuse_code(value, printable(path), trusted=self.trust_remote_code)
        return self._json[name][0]

    def _gone(self, name: str) -> ModelError:
        return ModelError(
            "CK-M002",
            f"{name} is missing, or a link to nothing",
            where=printable(self.path),
            fix="fetch the model again",
        )

    def _read_if_there(self, name: str) -> Any:
        return self._read(name) if (self.path / name).exists() or (self.path / name).is_symlink() else None

    def _collect(self, headers: dict[str, Header]) -> dict[str, SourceFile]:
        folders = self.sentence_transformer.folders if self.sentence_transformer else ()
        found = {
            name: SourceFile(name, self.path / name, "weights", header.identity) for name, header in headers.items()
        }
        roles: dict[str, Role] = contents.known_files(self.path, folders)
        if contents.WEIGHTS not in headers:
            roles[contents.INDEX] = "weights"
        for name, role in roles.items():
            try:
                found[name] = self._checked(name, role)
            except FileNotFoundError:
                raise self._gone(name) from None
        return found

    def _checked(self, name: str, role: Role) -> SourceFile:
        path = regular_file(self.path, name, any_link=self._any_link)
        if name.endswith(".safetensors"):
            return SourceFile(name, path, role, read_header(path).identity)
        if name.endswith(".json"):
            self._read(name)
            _, sha256, identity = self._json[name]
            self._hashes[name] = sha256
            return SourceFile(name, path, role, identity)
        identity = Identity.of(path.stat())
        limit = contents.text_limit(name, role)
        if identity.size > limit:
            raise ModelError(
                "CK-M019" if role == "tokenizer" else "CK-M006",
                f"{name} is too large: {identity.size} bytes, at most {limit} are read",
                where=printable(path),
                fix="restore it from where the model came from",
            )
        return SourceFile(name, path, role, identity)

    def _note_pickles(self) -> None:
        ignored = contents.pickles(self.path)
        if ignored:
            self._notice(f"ignored {', '.join(printable(name, 60) for name in ignored[:5])}: pickles are never opened")

    def _notice(self, sentence: str) -> None:
        self.notices.append(sentence)
        _logger.warning("compresskit: %s", sentence)

    def _check_manifest(self) -> None:
        """If the folder has a manifest, its word on every file of the model must hold."""
        if not (self.path / manifest.NAME).exists():
            return
        listed = manifest.read(self.path).by_path()
        for name, file in self.files.items():
            if file.role == "card":
                continue  # edited by people
            entry = listed.get(name)
            if entry is None:
                raise manifest.differs(self.path, name, "it is not listed")
            if file.identity.size != entry.size or self._sha256(file) != entry.sha256:
                raise manifest.differs(self.path, name, "its content is another")

    def _sha256(self, file: SourceFile) -> str:
        """The hash of ``file``, compared with what the Hub's cache says of it."""
        if file.name not in self._hashes:
            found, identity = hash_file(file.path)
            if identity != file.identity:
                raise self._changed(file, "after it was checked")
            promised = hub_sha256(file.path)
            if promised is not None and promised != found:
                raise ModelError(
                    "CK-M016",
                    f"{file.name} is not what the Hub has: its sha256 is another",
                    where=printable(file.path),
                    fix="delete it from the cache and fetch it again",
                )
            self._hashes[file.name] = found
        return self._hashes[file.name]

    def _require_untouched(self, when: str) -> None:
        for file in self.files.values():
            try:
                same = Identity.of(file.path.stat()) == file.identity
            except FileNotFoundError:
                same = False
            if not same:
                raise self._changed(file, when)

    def _changed(self, file: SourceFile, when: str) -> ModelError:
        return ModelError(
            "CK-M017",
            f"{file.name} of the source changed {when}",
            where=printable(file.path),
            why="the result would be of no known model",
            fix="run again when nothing writes to the source",
        )


def open_source(
    spec: str | Path | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> Source:
    """Find the model ``spec`` and check it, before transformers sees any of its files.

    Args:
        spec: a folder, ``pkg:NAME`` (the model that an installed package carries), or a model id of the Hub.
        revision: branch, tag or commit; for models of the Hub.
        trust_remote_code: allow code that comes with the model; needs a commit as ``revision``.

    Raises:
        ModelError: the model is missing, damaged, or not one that can be compressed.
        SecurityError: it could run code, or reads outside its folder.
    """
    if os.environ.get(_UNSAFE, "").lower() in ("1", "y", "yes", "true", "on"):
        raise SecurityError(
            "CK-S005",
            f"the environment variable {_UNSAFE} is set",
            why="it makes every later torch.load run code of the file",
            fix=f"unset {_UNSAFE}",
        )
    asked = spec if isinstance(spec, str | Path) else Path(os.fspath(spec))
    try:
        location = locate(asked, revision=revision, trust_remote_code=trust_remote_code)
        return Source(str(asked), location, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ResourceError(
            "CK-I008", "the model can't be read", where=printable(asked), why=printable(error), fix="check its rights"
        ) from error
