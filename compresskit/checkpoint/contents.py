"""Which files of a model's folder belong to it, what each is for, and whether its weights hang together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from compresskit.checkpoint import sentence_transformer
from compresskit.checkpoint.files import check_relative, printable, regular_file
from compresskit.checkpoint.safetensors_header import Header, TensorInfo, read_header
from compresskit.errors import ModelError, SecurityError

Role = Literal["weights", "config", "tokenizer", "sentence_transformers", "card"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SERVED: tuple[Role, ...] = ("weights", "config", "tokenizer", "sentence_transformers")

CONFIG_BYTES = 8 * 10**6
INDEX_BYTES = 32 * 10**6
TOKENIZER_BYTES = 64 * 10**6
TEMPLATE_BYTES = 10**6
CARD_BYTES = 16 * 10**6

_CONFIGS = ("config.json", "generation_config.json")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "source.spm", "target.spm", "tekken.json",
)  # fmt: skip
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_CARDS = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
# JSON whose keys are the vocabulary or tensor names, not settings.
TABLES = frozenset({INDEX, "tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json"})
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_MOST_MODULE_FILES = 200


def json_limit(name: str) -> int:
    """The most bytes that a JSON file of a model may have."""
    if name == INDEX:
        return INDEX_BYTES
    return TOKENIZER_BYTES if name in TABLES else TEMPLATE_BYTES if name in _TEMPLATES else CONFIG_BYTES


def text_limit(name: str, role: Role) -> int:
    """The most bytes that another file of a model may have."""
    if name.endswith(".jinja"):
        return TEMPLATE_BYTES
    return TOKENIZER_BYTES if role == "tokenizer" else CARD_BYTES


def known_files(folder: Path, module_folders: tuple[str, ...] = ()) -> dict[str, Role]:
    """Files of ``folder`` by relative name, as far as they belong to a model; weights by their usual names."""
    found: dict[str, Role] = {}
    tables: tuple[tuple[tuple[str, ...], Role], ...] = (
        (_CONFIGS, "config"),
        (_TOKENIZER + _TEMPLATES, "tokenizer"),
        (sentence_transformer.file_names(), "sentence_transformers"),
        (_CARDS, "card"),
    )
    for names, role in tables:
        found.update({name: role for name in names if _present(folder / name)})
    templates = folder / "additional_chat_templates"
    if templates.is_dir():
        found.update({f"{templates.name}/{path.name}": "tokenizer" for path in sorted(templates.glob("*.jinja"))})
    for inner in module_folders:
        found.update(dict.fromkeys(_module_files(folder, inner), "sentence_transformers"))
    return found


def _present(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _module_files(folder: Path, inner: str) -> list[str]:
    """Configs and weights of a sentence-transformers module; one that has its weights as a pickle is refused."""
    if not (folder / inner).is_dir():
        return []  # such as 2_Normalize, which has no files
    names = []
    for path in sorted((folder / inner).rglob("*")):
        if path.suffix in (".json", ".safetensors", ".txt", ".model") and not path.is_dir():
            names.append(path.relative_to(folder).as_posix())
        if len(names) > _MOST_MODULE_FILES:
            raise ModelError("CK-M021", f"the module {printable(inner)} has too many files", where=printable(folder))
    if not any(name.endswith(".safetensors") for name in names):
        _refuse_pickles(folder / inner)
    return names


def refuse_missing(folder: Path) -> None:
    """Say what is in ``folder`` instead, if it holds no model that can be read.

    Raises:
        ModelError: CK-M008 an adapter or GGUF, CK-M002 no config, CK-M003 no weights.
        SecurityError: CK-S001 weights as pickles only.
    """
    where = printable(folder)
    if _present(folder / "adapter_config.json"):
        raise ModelError(
            "CK-M008",
            "the folder holds an adapter, not a whole model",
            where=where,
            fix="merge it into its base model first (peft: merge_and_unload), then save that",
        )
    weights = _present(folder / WEIGHTS) or _present(folder / INDEX)
    if not weights:
        if any(folder.glob("*.gguf")):
            raise ModelError(
                "CK-M008",
                "the folder holds a GGUF file",
                where=where,
                fix="start from the safetensors checkpoint that it was made from",
            )
        _refuse_pickles(folder)
    if not _present(folder / "config.json"):
        inner = sorted(path.parent.name for path in folder.glob("*/config.json") if (path.parent / WEIGHTS).exists())
        raise ModelError(
            "CK-M002",
            "the folder holds no model: config.json is missing",
            where=where,
            fix=f"did you mean its folder {printable(inner[0])!r}?"
            if inner
            else "give the folder that has config.json",
        )
    if not weights:
        raise ModelError(
            "CK-M003",
            f"the folder holds no weights: neither {WEIGHTS} nor {INDEX}",
            where=where,
            fix="fetch the model again, or save it with save_pretrained",
        )


def pickles(folder: Path) -> list[str]:
    """Names of files in ``folder`` that are pickles by their ending, and of pickled checkpoint folders."""
    names = {path.name for pattern in _PICKLES for path in folder.glob(pattern)}
    return sorted(names | {".metadata" for _ in folder.glob(".metadata")})


def _refuse_pickles(folder: Path) -> None:
    found = pickles(folder)
    if found:
        raise SecurityError(
            "CK-S001",
            f"the weights are a pickle ({printable(found[0], 60)}), which is never opened",
            where=printable(folder),
            why="unpickling can run any code, also in the so-called safe mode",
            fix="use a version of the model with safetensors: on the Hub see its other revisions or conversions",
        )


def read_weights(
    folder: Path, read_json: Callable[[str], Any], *, any_link: bool = False
) -> tuple[dict[str, Header], dict[str, TensorInfo]]:
    """Headers of the weight files by name, and all tensors of the model.

    Args:
        read_json: gives the value of a JSON file of the folder.

    Raises:
        ModelError: CK-M004 a damaged file, CK-M005 files and index don't fit together.
        SecurityError: CK-S002, CK-S003.
    """
    if _present(folder / WEIGHTS):
        try:
            header = read_header(regular_file(folder, WEIGHTS, any_link=any_link))
        except FileNotFoundError:
            raise _unfit(printable(folder / WEIGHTS), "it is a link to nothing") from None
        return {WEIGHTS: header}, header.tensors
    return _read_shards(folder, _weight_map(read_json(INDEX), printable(folder / INDEX)), any_link)


def _weight_map(index: Any, where: str) -> dict[str, str]:
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise _unfit(where, "it has no weight_map")
    for name in set(map(str, table.values())):
        check_relative(name, where)
    if any(not isinstance(file, str) or not file.endswith(".safetensors") for file in table.values()):
        raise _unfit(where, "it names weight files that are no safetensors")
    return table


def _read_shards(
    folder: Path, table: dict[str, str], any_link: bool
) -> tuple[dict[str, Header], dict[str, TensorInfo]]:
    where = printable(folder / INDEX)
    headers: dict[str, Header] = {}
    owner: dict[str, str] = {}
    for file in sorted(set(table.values())):
        try:
            headers[file] = read_header(regular_file(folder, file, any_link=any_link))
        except FileNotFoundError:
            raise _unfit(where, f"the file {printable(file)} is missing") from None
        for name in headers[file].tensors:
            if name in owner:
                raise _unfit(where, f"{printable(name, 80)} is in {owner[name]} and in {file}")
            owner[name] = file
    for name in table.keys() - owner.keys():
        raise _unfit(where, f"{printable(name, 80)} should be in {table[name]} and isn't")
    for name, file in owner.items():
        if table.get(name) != file:
            raise _unfit(where, f"{printable(name, 80)} is in {file}, which the index doesn't say")
    return headers, {name: tensor for header in headers.values() for name, tensor in header.tensors.items()}


def _unfit(where: str, why: str) -> ModelError:
    return ModelError(
        "CK-M005",
        "the weight files and their index don't fit together",
        where=where,
        why=why,
        fix="fetch all weight files and the index again, of one version of the model",
    )
