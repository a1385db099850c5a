"""Loading a model so that every tensor of it comes from the files, is finite, and none is left over.

transformers loads and returns a model with a missing tensor (made up at random), an unexpected one, NaN weights, or a
config that asks for more layers than the files have. Here each of these is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from compresskit.checkpoint.files import printable
from compresskit.checkpoint.quiet import quiet_transformers
from compresskit.errors import ModelError, ResourceError, UsageError
from compresskit.numerics.finite import all_finite

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from compresskit.checkpoint.safetensors_header import TensorInfo

# Buffers that older versions of transformers wrote and that today's models compute, by model type. transformers
# itself drops position_ids and rotary frequencies of models that still have such a buffer.
STALE: dict[str, tuple[str, ...]] = {
    "*": (r"(^|\.)position_ids$", r"(^|\.)rotary_emb\.inv_freq$"),
    "gpt2": (r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$",),
    "gpt_neo": (r"\.attn\.attention\.(bias|masked_bias)$",),
    "gpt_neox": (r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",),
    "gptj": (r"\.attn\.(bias|masked_bias)$",),
    "t5": (r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
}

_TYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}
# A file may hold several numbers in one element (codes of four bits), and share blocks; above this it is no such case.
_MOST_PARAMETERS_PER_ELEMENT, _SLACK = 64, 10**7
_BLOCK = re.compile(r"^(.*?\.\d+)\.")
_SHOWN = 5
_LOADING = (RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError, ImportError)


def load_strict(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load the checked ``folder``.

    Args:
        config: the content of its config.json.
        tensors: what its weight files hold.
        dtype: floating type; None for the saved one.

    Raises:
        ModelError: CK-M007 sizes that the files can't fill, CK-M010 missing, CK-M011 left over, CK-M012 another shape,
            CK-M013 another number of layers, CK-M014 not finite, CK-M015 ties, CK-M018 anything transformers refuses.
        UsageError: CK-M023, no such type.
        ResourceError: CK-M024, not enough memory.
    """
    wanted = _type(dtype)
    where = printable(folder)
    with quiet_transformers():
        try:
            cls, empty = _empty_model(folder, config, trust_remote_code)
            _refuse_absurd(empty, tensors, where)
            model, report = cls.from_pretrained(
                str(folder),
                dtype="auto" if wanted is None else wanted,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name and with both shapes
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
        except MemoryError as error:
            raise ResourceError("CK-M024", "there is not enough memory to load the model", where=where) from error
        except _LOADING as error:
            raise _refused_by_transformers(where, error) from error
    _check_report(model, report, where)
    if "quantization_config" not in config:
        _check_ties(model, tensors, where)
    refuse_non_finite(model, where)
    moved: PreTrainedModel = model.to(torch.device(device))
    return moved.eval()


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(" ".join(lines[:4]) or type(error).__name__, 400)


def _type(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _TYPES:
        raise UsageError("CK-M023", f"{dtype!r} is no floating type", fix=f"use one of {', '.join(_TYPES)}")
    return _TYPES[dtype]


def _empty_model(folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> tuple[Any, nn.Module]:
    """The class to load, and an instance without storage, from the class that the config names."""
    import transformers

    from compresskit.checkpoint.classes import model_class

    names = config.get("architectures") or []
    named = model_class(names[0]) if names else None
    settings = transformers.AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=trust_remote_code
    )
    known = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    with torch.device("meta"):
        if known:
            return named, named(settings)  # type: ignore[misc]
        auto = transformers.AutoModel
        return auto, auto.from_config(settings, trust_remote_code=trust_remote_code)


def empty_of(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    dtype: torch.dtype | str,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model of the checked ``folder`` without values: on the meta device, tied as its class ties it.

    Raises:
        ModelError: CK-M007, sizes that the files can't fill; CK-M018, anything transformers refuses.
        UsageError: CK-M023, no such type.
    """
    wanted, where = _type(dtype), printable(folder)
    try:
        cls, empty = _empty_model(folder, config, trust_remote_code)
        _refuse_absurd(empty, tensors, where)
        with torch.device("meta"):
            model: PreTrainedModel = cls._from_config(empty.config, dtype=wanted)
    except _LOADING as error:
        raise _refused_by_transformers(where, error) from error
    return model.eval()


def _refused_by_transformers(where: str, error: BaseException) -> ModelError:
    return ModelError(
        "CK-M018",
        "transformers can't load the model",
        where=where,
        why=_first_lines(error),
        fix="check that this transformers version knows the model type; upgrade it, or restore config.json",
    )


def is_stale(name: str, model_type: str) -> bool:
    """Whether a tensor of a file is one that older versions of transformers wrote and today's compute."""
    return any(re.search(pattern, name) for pattern in (*STALE["*"], *STALE.get(model_type, ())))


def _refuse_absurd(empty: nn.Module, tensors: Mapping[str, TensorInfo], where: str) -> None:
    described = sum(parameter.numel() for parameter in empty.parameters())
    held = sum(tensor.elements for tensor in tensors.values())
    if described > _MOST_PARAMETERS_PER_ELEMENT * held + _SLACK:
        raise ModelError(
            "CK-M007",
            f"config.json describes a model of {described:,} parameters, the files hold {held:,}",
            where=where,
            fix="use config.json and weight files of one model",
        )


def _check_report(model: PreTrainedModel, report: Mapping[str, Any], where: str) -> None:
    missing: set[str] = set(report["missing_keys"])
    extra = {name for name in report["unexpected_keys"] if not is_stale(name, model.config.model_type)}
    shapes = sorted((str(name), tuple(found), tuple(wanted)) for name, found, wanted in report["mismatched_keys"])
    missing -= {name for name, _, _ in shapes}
    if shapes:
        listed = "; ".join(f"{name}: {list(found)} for {list(wanted)}" for name, found, wanted in shapes[:_SHOWN])
        raise _unfit("CK-M012", f"{len(shapes)} tensors have another shape than the config gives", where, listed)
    if not missing and not extra:
        return
    if not extra and missing == _untied_head(model):
        raise ModelError(
            "CK-M015",
            "config.json says that the output matrix is not tied to the embeddings, but the files hold only one",
            where=f"{where}: {min(missing)}",
            fix="set tie_word_embeddings to true in config.json",
        )
    if _whole_blocks(model, missing, extra):
        counts = f"missing: {_listed(missing)}" if missing else f"left over: {_listed(extra)}"
        raise _unfit("CK-M013", "config.json and the files differ in the number of layers", where, counts)
    if missing:
        why = _listed(missing) + (f"; left over: {_listed(extra)}" if extra else "")
        raise _unfit("CK-M010", f"{len(missing)} tensors that the model needs are missing", where, why)
    raise _unfit("CK-M011", f"{len(extra)} tensors of the files belong to nothing in the model", where, _listed(extra))


def _listed(names: Iterable[str]) -> str:
    ordered = [printable(name, 100) for name in sorted(names)]
    return ", ".join(ordered[:_SHOWN]) + (f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")


def _unfit(code: str, what: str, where: str, why: str) -> ModelError:
    return ModelError(code, what, where=where, why=why, fix="use config.json and weight files of one model")


def _untied_head(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight}


def _whole_blocks(model: PreTrainedModel, missing: set[str], extra: set[str]) -> bool:
    """Whether what is missing or left over are whole blocks: all of the model's, or none of them known to it."""
    names = set(model.state_dict())
    blocks = {match.group(1) for name in missing | extra if (match := _BLOCK.match(name))}
    if not blocks or any(_BLOCK.match(name) is None for name in missing | extra):
        return False
    return all({name for name in names if name.startswith(f"{block}.")} <= missing for block in blocks)


def _check_ties(model: PreTrainedModel, tensors: Mapping[str, TensorInfo], where: str) -> None:
    """What the config ties must be one parameter, and what it doesn't tie must differ.

    transformers only warns when a tied pair differs in the file, keeps both, and leaves the config as it is; whoever
    reads the config later then drops one of them. T5's config has no way to say that a head is untied (that of T5 1.1
    is): there the files decide.
    """
    free = set() if _may_say_untied(model.config) else _untied_head(model)
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if target not in free and model.get_parameter(target) is not model.get_parameter(source):
            raise ModelError(
                "CK-M015",
                f"config.json ties {target} to {source}, but the files hold two that differ",
                where=where,
                fix="to keep both set tie_word_embeddings to false in config.json, or delete one from the file",
            )
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    first, second = getattr(table, "weight", None), getattr(head, "weight", None)
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first is not second and torch.equal(first, second):
        raise ModelError(
            "CK-M015",
            "config.json says that the output matrix is not tied to the embeddings, but the two are equal",
            where=where,
            why="they would be compressed and stored twice",
            fix="set tie_word_embeddings to true in config.json",
        )


def _may_say_untied(config: PreTrainedConfig) -> bool:
    """Whether a config of this class keeps a ``tie_word_embeddings`` of false."""
    again = type(config).from_dict({**config.to_dict(), "tie_word_embeddings": False})
    return not getattr(again, "tie_word_embeddings", False)


def refuse_non_finite(model: nn.Module, where: str) -> None:
    """Raise if a parameter or stored buffer of ``model`` has NaN or infinite values.

    Raises:
        ModelError: CK-M014, with each tensor, how many of its values, and the index of the first.
    """
    found = list(_non_finite(model))
    if found:
        raise ModelError(
            "CK-M014",
            f"{len(found)} tensors have values that are not finite",
            where=where,
            why="; ".join(found[:_SHOWN]),
            fix="the training of this model diverged, or the file is damaged; use another version",
        )


def _non_finite(model: nn.Module) -> Iterator[str]:
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.device.type == "meta":
            continue
        if not all_finite(tensor):
            bad = ~torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float())
            first = _index(int(bad.flatten().int().argmax()), tensor.shape)
            yield f"{printable(name, 100)}: {int(bad.sum())} of {tensor.numel()}, first at {first}"


def _index(flat: int, shape: torch.Size) -> list[int]:
    place = []
    for size in reversed(shape):
        place.append(flat % size)
        flat //= size
    return place[::-1]


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of the checked ``folder``.

    Raises:
        ModelError: CK-M019.
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
        except (*_LOADING, RecursionError) as error:
            raise _no_tokenizer(folder, error) from error
        except Exception as error:
            # The tokenizers library raises bare Exceptions for files that it can't parse.
            if type(error) is not Exception:
                raise
            raise _no_tokenizer(folder, error) from error
    return tokenizer


def _no_tokenizer(folder: Path, error: BaseException) -> ModelError:
    return ModelError(
        "CK-M019",
        "the tokenizer can't be loaded",
        where=printable(folder),
        why=_first_lines(error),
        fix="restore the tokenizer's files from where the model came from",
    )
