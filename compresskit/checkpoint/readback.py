"""Writing the model's own files, and proving by reading them that they hold the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from compresskit.checkpoint.files import printable
from compresskit.checkpoint.load import LayoutLoader, attach
from compresskit.checkpoint.locate import Location
from compresskit.checkpoint.quiet import quiet_transformers
from compresskit.checkpoint.source import Source
from compresskit.checkpoint.strict_load import refuse_non_finite
from compresskit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_absent_values(model: PreTrainedModel) -> None:
    """Refuse a model of which a part isn't in memory.

    Raises:
        ModelError: CK-I016.
    """
    absent = [name for name, tensor in model.state_dict().items() if tensor.device.type == "meta"]
    if absent:
        raise ModelError(
            "CK-I016",
            f"{len(absent)} tensors of the model have no values here",
            where=absent[0],
            why="they are on the meta device, or kept on disk by accelerate",
            fix="load the whole model into memory first",
        )


def write_model(model: PreTrainedModel, folder: Path, max_shard_size: str) -> bool:
    """Write weights and config by ``save_pretrained``; whether the result is a stock checkpoint.

    Raises:
        ModelError: CK-I016 parts of the model have no storage here, CK-M014 not finite, CK-L010 to CK-L021 no layout.
    """
    refuse_absent_values(model)
    refuse_non_finite(model, type(model).__name__)
    with quiet_transformers():
        return save_described(model, folder, max_shard_size=max_shard_size)


def save_described(model: PreTrainedModel, folder: Path, **options: Any) -> bool:
    """``attach``, and ``save_pretrained`` by that very layout; whether the result is a stock checkpoint.

    Raises:
        ModelError: CK-L010 to CK-L021, no layout.
    """
    if attach(model) is None:
        model.save_pretrained(folder, **options)
        return True
    loader = cast(LayoutLoader, model.hf_quantizer)
    loader.described = loader.quantization_config
    try:
        model.save_pretrained(folder, **options)
    finally:
        loader.described = None
    return False


def read_back(model: PreTrainedModel, folder: Path) -> Source:
    """Open ``folder`` as any source, load it, and compare config, names, ties and every bit with ``model``.

    Raises:
        ModelError: CK-I015, or what opening a damaged source gives.
    """
    source = Source(str(folder), Location(folder))
    again = source.load_model()
    if (folder / "config.json").read_text(encoding="utf-8") != model.config.to_json_string(use_diff=True):
        raise corrupted(folder, "config.json is not the model's config")
    live, read = model.state_dict(), again.state_dict()
    if live.keys() != read.keys():
        raise corrupted(folder, f"other names: {', '.join(sorted(live.keys() ^ read.keys())[:5])}")
    for name, tensor in live.items():
        if not same_bits(tensor, read[name]):
            raise corrupted(folder, f"{name} has other values")
    if _ties(model) != _ties(again):
        raise corrupted(folder, "other parameters are shared")
    return source


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have one type, one shape and the same bits, wherever they lie."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    one, other = (tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (first, second))
    return torch.equal(one, other)


def _ties(model: nn.Module) -> set[frozenset[str]]:
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    return {frozenset(names) for names in owners.values() if len(names) > 1}


def corrupted(folder: Path, why: str) -> ModelError:
    """The error for files that don't hold what was written."""
    return ModelError(
        "CK-I015",
        "what was written, read back, is not the model",
        where=printable(folder),
        why=why,
        fix="nothing was published; check the disk and its memory, then run again",
    )
