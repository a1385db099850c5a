"""From what the user wrote to a folder on this machine: a folder, an installed package, or a model of the Hub."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from compresskit.checkpoint.files import check_relative, printable
from compresskit.errors import ModelError, SecurityError

PACKAGE_PREFIX = "pkg:"

# What is fetched from the Hub: no code, no pickles, no weights of other frameworks.
FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.spm", "README.md", "LICENSE*")
NOT_FETCHED = ("onnx/*", "openvino/*", "coreml/*", "original/*", "consolidated*.safetensors", "*.fp16.safetensors")

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PACKAGE = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,99})(?:/(.+))?")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_DEEPEST, _MOST_FOLDERS = 4, 2000


@dataclass(frozen=True)
class Location:
    """A model's folder. ``any_link``: links in it may lead anywhere, as in an installed package."""

    folder: Path
    revision: str | None = None
    any_link: bool = False


def locate(spec: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Location:
    """Find the folder that ``spec`` names; a model of the Hub is fetched, or taken from the cache.

    Args:
        spec: a path, ``pkg:NAME`` (the one model folder in the installed package NAME) or ``pkg:NAME/FOLDER``, or a
            model id of the Hub, ``owner/name``.
        revision: branch, tag or commit; for models of the Hub.
        trust_remote_code: asks for a commit as ``revision``, so that the code that was read is the code that runs.

    Raises:
        ModelError: CK-M001 nothing there, CK-M009 can't be fetched, CK-M022 no such package or no model in it.
        SecurityError: CK-S007 an address of another kind, CK-S008 code allowed without a commit.
    """
    text = os.fspath(spec)
    if isinstance(spec, Path):
        return Location(_folder(spec))
    if not text or not text.isprintable() or len(text) > 4096:
        raise ModelError("CK-M001", f"{printable(text, 80)!r} names no model", fix="give a folder or owner/name")
    if text.startswith(PACKAGE_PREFIX):
        return Location(_package_folder(text.removeprefix(PACKAGE_PREFIX)), any_link=True)
    if "://" in text or text.startswith(("file:", "data:", "\\\\")):
        raise SecurityError(
            "CK-S007",
            f"{printable(_mask(text), 120)!r} is an address, not a model",
            why="nothing is fetched from anywhere but the Hugging Face Hub",
            fix="give a folder, pkg:NAME, or a model id owner/name",
        )
    path = Path(text).expanduser()
    if path.exists() or path.is_symlink() or not _HUB_ID.fullmatch(text):
        return Location(_folder(path))
    if trust_remote_code and not _COMMIT.fullmatch(revision or ""):
        raise SecurityError(
            "CK-S008",
            "code of a model is only run at a commit that you name",
            where=text,
            why="a branch or tag may point to other code tomorrow",
            fix="give --revision with the 40 hexadecimal digits of the commit that you have read",
        )
    return _fetched(text, revision)


def _folder(path: Path) -> Path:
    if path.is_dir():
        return path
    shown = printable(path)
    if path.is_file():
        raise ModelError(
            "CK-M001",
            f"{shown} is a file, not a model's folder",
            fix="give the folder that holds config.json and the weights"
            if path.suffix != ".gguf"
            else "GGUF can't be compressed again; give the safetensors checkpoint that it was made from",
        )
    aside = sorted(path.parent.glob(f"{_escaped(path.name)}.ck-old-*")) if path.parent.is_dir() else []
    raise ModelError(
        "CK-M001",
        f"there is no folder {shown}",
        why=f"a run was killed while it replaced it; the old content is in {printable(aside[0].name)}" if aside else "",
        fix="the next run with this output brings it back" if aside else "check the path; a model id is owner/name",
    )


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _package_folder(text: str) -> Path:
    """The model's folder in an installed package, found without importing the package."""
    match = _PACKAGE.fullmatch(text)
    if match is None:
        raise _no_package(text, "it is no name of a package", "write pkg:NAME or pkg:NAME/FOLDER")
    name, inside = match.groups()
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise _no_package(text, printable(error), "") from error
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec is not None else []
    if not roots:
        raise _no_package(text, "no such package is installed", f"pip install {name.replace('_', '-')}")
    if inside is not None:
        wanted = check_relative(inside.rstrip("/"), text)
        roots = [root / wanted for root in roots if (root / wanted).is_dir()]
    found = sorted(folder for root in roots for folder in _model_folders(root))
    if len(found) != 1:
        names = ", ".join(printable(folder.name) for folder in found[:5])
        raise _no_package(
            text,
            f"it carries several: {names}" if found else "no folder of it holds config.json and safetensors weights",
            "name one as pkg:NAME/FOLDER" if found else "",
        )
    return found[0]


def _model_folders(root: Path) -> Iterator[Path]:
    """Folders with a config and safetensors, not looking into one that was found."""
    level, seen = [root], 0
    for _ in range(_DEEPEST):
        deeper: list[Path] = []
        for folder in level:
            seen += 1
            if seen > _MOST_FOLDERS or not folder.is_dir():
                continue
            if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
                yield folder
            else:
                deeper += sorted(inner for inner in folder.iterdir() if inner.is_dir() and inner.name != "__pycache__")
        level = deeper


def _no_package(text: str, why: str, fix: str) -> ModelError:
    return ModelError("CK-M022", f"no model in the package {printable(text, 80)!r}", why=why, fix=fix)


def _fetched(repository: str, revision: str | None) -> Location:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # Timeouts and refused connections are of the HTTP library's own class; which library differs between versions.
    http_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(FETCHED), ignore_patterns=list(NOT_FETCHED)
        )
    except GatedRepoError as error:
        raise _not_fetched(repository, error, "ask for access on its page, then log in: `hf auth login`") from None
    except RevisionNotFoundError as error:
        raise _not_fetched(repository, error, f"there is no revision {printable(revision, 60)!r}") from None
    except RepositoryNotFoundError as error:
        raise _not_fetched(
            repository, error, "check the spelling; a private model needs `hf auth login`; a folder needs to exist"
        ) from None
    except HFValidationError as error:
        raise ModelError("CK-M001", f"{repository!r} names no model", why=printable(error)) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _not_fetched(
            repository, error, "it is neither a folder here nor in the cache: go online, or fetch it with `hf download`"
        ) from None
    except (OSError, http_error) as error:
        raise _not_fetched(repository, error, "try again later, or fetch it with `hf download`") from None
    return Location(Path(folder), revision=Path(folder).name)


def _mask(text: str) -> str:
    return _TOKEN.sub("hf_***", text)


def _not_fetched(repository: str, error: Exception, fix: str) -> ModelError:
    return ModelError(
        "CK-M009",
        f"the model {repository!r} can't be fetched",
        why=printable(_mask(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)),
        fix=fix,
    )
