"""Loading compressed checkpoints: the loader that transformers calls, and a strict one of our own.

transformers lets other packages register a "quantizer" by the name in ``quantization_config.quant_method``. Ours
replays the layout on the empty model before the stock loader fills it, and reads the layout anew at every save, so that
a model edited after a reload is saved as edited.

This module is imported while transformers is still importing itself, so everything else is imported in functions.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compresskit.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from compresskit.checkpoint.operations import Operation

METHOD = "compresskit"
FORMAT_VERSION = 1

_KEYS = frozenset({"quant_method", "format_version", "layout", "guard", "dtype"})
_logger = logging.getLogger(__name__)


class CompressedConfig(QuantizationConfigMixin):
    """``quantization_config`` of a compressed checkpoint.

    Args:
        layout: the operations (see ``checkpoint.operations``).
        guard: address of the parameter stored under a second name.
        dtype: the model's floating type, where the first floating parameter has another one (a layer's scales).

    Raises:
        ModelError: CK-L001 for a newer format, CK-L002 for one that isn't ours.
    """

    def __init__(
        self,
        layout: list[Operation] | None = None,
        guard: str = "",
        dtype: str | None = None,
        format_version: int = FORMAT_VERSION,
        **other: Any,
    ) -> None:
        from compresskit.checkpoint.addresses import is_address
        from compresskit.checkpoint.operations import check

        if type(format_version) is not int or format_version > FORMAT_VERSION:
            raise ModelError(
                "CK-L001",
                f"the checkpoint has format version {format_version!r:.40}; this compresskit reads {FORMAT_VERSION}",
                fix="upgrade compresskit",
            )
        unknown = sorted(set(other) - _KEYS)
        if unknown or not is_address(guard) or not guard or dtype not in (None, "float32", "float16", "bfloat16"):
            raise ModelError(
                "CK-L002",
                "quantization_config in config.json is not one that compresskit writes",
                where=", ".join(unknown),
                fix="restore config.json from the checkpoint's origin",
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layout, self.guard, self.dtype, self.format_version = check(layout), guard, dtype, format_version

    def to_dict(self) -> dict[str, Any]:
        content = {"quant_method": METHOD, "format_version": self.format_version, "guard": self.guard}
        if self.dtype is not None:
            content["dtype"] = self.dtype
        return {**content, "layout": self.layout}


class LayoutLoader(HfQuantizer):
    """Rebuilds the compressed modules before loading; writes the layout, ties and guard when saving."""

    quantization_config: CompressedConfig
    described: CompressedConfig | None = None
    """What ``describe`` gives, while a save goes on that has just asked."""

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Called before the model's type is settled. A replaced attention stays, whatever the user asked for."""
        if self.quantization_config.dtype is not None:
            config.dtype = self.quantization_config.dtype
        return config

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        from compresskit.checkpoint import guard
        from compresskit.checkpoint.layout import replay

        settings = self.quantization_config
        saved_class = type(model).__name__ in (model.config.architectures or [])
        stock_ties = dict(model.all_tied_weights_keys)
        changed = replay(model, settings.layout, partial=not saved_class)
        self._heads = _heads_of_compressed_tables(model, stock_ties)
        self._frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self._required = _required_names(model, None if saved_class else changed)
        guard.expect(model, settings.guard)
        # transformers pads the bias of every module that it ties to a vocabulary's size; our ties are of all kinds.
        vars(model)["_adjust_bias"] = _leave_bias
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        from compresskit.checkpoint import guard
        from compresskit.checkpoint.memory import order_memory

        del vars(model)["_adjust_bias"]
        guard.restore(model, self.quantization_config.guard)
        _tie(model)
        for name, parameter in model.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_(False)
        _check_loaded(model, self._required)
        _fill_heads(model, self._heads)
        order_memory(model)
        # Our layers take .half() and .float() well, and training as well; transformers refuses both by this mark.
        vars(model)["is_quantized"] = False
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Called first by ``save_pretrained``: what to write, for the model as it now is."""
        settings = self.described or describe(model)
        if settings is None:
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            return model.state_dict(), {}
        self.quantization_config = model.config.quantization_config = settings
        return state_to_write(model, settings), {}

    def is_serializable(self, *_: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True


def _leave_bias(*_: Any) -> None:
    """Stands in for ``PreTrainedModel._adjust_bias`` during a load."""


def _required_names(model: PreTrainedModel, changed: list[str] | None) -> set[str]:
    """Names that the file must hold: all for the class that was saved, else those of the parts that were changed."""
    from compresskit.checkpoint.addresses import path_of

    names = set(model.state_dict()) - set(model.all_tied_weights_keys)
    if changed is None:
        return names
    paths = [path for path in (path_of(model, address) for address in changed) if path]
    return {name for name in names if any(name == path or name.startswith(f"{path}.") for path in paths)}


def _tie(model: PreTrainedModel) -> None:
    """Make tied names one parameter, also where the guard had taken its place while transformers tied them."""
    for target, source in model.all_tied_weights_keys.items():
        owner, _, name = target.rpartition(".")
        (model.get_submodule(owner) if owner else model)._parameters[name] = model.get_parameter(source)


def _heads_of_compressed_tables(model: PreTrainedModel, stock_ties: dict[str, str]) -> dict[str, str]:
    """Parameters that the stock class ties to a table that is compressed here: name -> path of the table."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    lost = {target: source for target, source in stock_ties.items() if target in names and source not in names}
    return {target: source.rpartition(".")[0] for target, source in lost.items()}


def _fill_heads(model: PreTrainedModel, heads: dict[str, str]) -> None:
    """Give a head that the file doesn't hold the values of the compressed table that the stock class ties it to."""
    for name, table in heads.items():
        parameter = model.get_parameter(name)
        if getattr(parameter, "_is_hf_initialized", False):
            continue
        values: Any = model.get_submodule(table).weight
        parameter.data.copy_(values.detach())
        _logger.warning("compresskit: %s takes the values of the compressed %s, and is a copy of its own", name, table)


def _check_loaded(model: PreTrainedModel, required: set[str]) -> None:
    """transformers marks what came from the file, and makes up the rest."""
    state = model.state_dict(keep_vars=True)
    missing = [
        name
        for name in sorted(required)
        if name in state and state[name].device.type != "meta" and not getattr(state[name], "_is_hf_initialized", False)
    ]
    if missing:
        raise ModelError(
            "CK-L005",
            f"the checkpoint lacks {len(missing)} tensors that its layout needs",
            where=", ".join(missing[:5]),
            why="they would be random numbers",
            fix="restore the weight files from the checkpoint's origin",
        )


def describe(model: PreTrainedModel) -> CompressedConfig | None:
    """The ``quantization_config`` that rebuilds ``model`` as it now is, or None for a stock model.

    The model's tensors are laid out as those of the reloaded one will be, so that both compute the same bits.

    Raises:
        ModelError: CK-L010 to CK-L021, if the model can't be described.
    """
    from compresskit.checkpoint import guard
    from compresskit.checkpoint.layout import read_layout
    from compresskit.checkpoint.memory import order_memory
    from compresskit.checkpoint.skeleton import model_dtype

    order_memory(model)
    layout = read_layout(model)
    if not layout:
        return None
    dtype = model_dtype(model)
    return CompressedConfig(
        layout=layout,
        guard=guard.choose(model),
        dtype=None if dtype == model.dtype else str(dtype).removeprefix("torch."),
    )


def stored_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of ``model`` by the names under which they are stored: of shared ones, one."""
    from compresskit.checkpoint.diff import stored_name
    from compresskit.checkpoint.skeleton import tie_groups

    state: dict[str, Tensor] = model.state_dict()
    for group in tie_groups(model, known=False):
        kept = stored_name(model, group) if len(group) > 1 else ""
        for name in group - {kept} if kept else ():
            state.pop(name, None)
    return state


def state_to_write(model: PreTrainedModel, settings: CompressedConfig) -> dict[str, Tensor]:
    """The tensors of ``model`` with shared ones once, and the guarded one under its second name."""
    from transformers.core_model_loading import dot_natural_key

    from compresskit.checkpoint import guard
    from compresskit.checkpoint.addresses import path_of
    from compresskit.checkpoint.diff import stored_name
    from compresskit.checkpoint.skeleton import tie_groups

    state = stored_state(model)
    guarded = str(path_of(model, settings.guard))
    group = next(group for group in tie_groups(model, known=False) if guarded in group)
    guard.hide(state, guarded if len(group) == 1 else stored_name(model, group))
    # Which shard a tensor goes to follows this order; transformers sorts only models that were loaded.
    return dict(sorted(state.items(), key=lambda item: dot_natural_key(item[0])))


def attach(model: PreTrainedModel) -> list[Operation] | None:
    """Make plain ``model.save_pretrained(folder)`` write a checkpoint that loads; the layout, or None if it is stock.

    Afterwards the layout is read anew at each save.

    Raises:
        ModelError: as ``describe``.
    """
    settings = describe(model)
    if settings is None:
        if isinstance(getattr(model, "hf_quantizer", None), LayoutLoader):
            del model.hf_quantizer
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        return None
    model.config.quantization_config = settings
    vars(model)["hf_quantizer"] = LayoutLoader(settings, pre_quantized=True)
    return settings.layout


def load_model(
    path: str | Path,
    *,
    auto_class: str | type | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The model in the folder ``path``, in evaluation mode, and not one tensor made up.

    Args:
        auto_class: a class of transformers, or its name; by default the class that was saved. Another class of the
            same model may leave tensors of the saved one's head unused.
        dtype: floating type to load in; by default the saved one.

    Raises:
        ModelError: CK-L040, tensors missing, left over or of another shape; CK-L042, an unknown class; CK-L00x.
    """
    import torch
    import transformers

    from compresskit.checkpoint.memory import order_memory

    cls = _class_to_load(Path(path), auto_class)
    try:
        model, report = cls.from_pretrained(
            str(path),
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
        )
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise ModelError("CK-L040", "the checkpoint can't be loaded", where=str(path), why=str(error)) from error
    left_over = report["unexpected_keys"] if type(model).__name__ in _architectures(Path(path)) else ()
    wrong = {
        "missing": sorted(report["missing_keys"]),
        "left over": sorted(left_over),
        "of another shape": sorted(str(key[0]) for key in report["mismatched_keys"]),
    }
    if any(wrong.values()):
        raise ModelError(
            "CK-L040",
            "the weights don't fit the config",
            where=str(path),
            why="; ".join(f"{what}: {', '.join(names[:5])} ({len(names)})" for what, names in wrong.items() if names),
            fix="use config.json and weight files of one checkpoint",
        )
    if not isinstance(model, transformers.PreTrainedModel):
        raise ModelError("CK-L042", f"{cls.__name__} makes no PreTrainedModel", where=str(path))
    model.to(torch.device(device))  # type: ignore[arg-type]
    order_memory(model)
    return model.eval()


def _architectures(path: Path) -> list[str]:
    from transformers import PreTrainedConfig

    try:
        content, _ = PreTrainedConfig.get_config_dict(str(path), local_files_only=True)
    except OSError as error:
        raise _unreadable(path, str(error) if path.is_dir() else "there is no such folder") from error
    if not content:
        raise _unreadable(path, "its config.json is missing or empty")
    return list(content.get("architectures") or [])


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError(
        "CK-L040",
        "the checkpoint can't be loaded",
        where=str(path),
        why=why,
        fix="give the folder that has config.json and the weights",
    )


def _class_to_load(path: Path, auto_class: str | type | None) -> Any:
    from compresskit.checkpoint.classes import model_class

    if isinstance(auto_class, type):
        return auto_class
    names = [auto_class] if auto_class else _architectures(path)
    cls = model_class(names[0]) if names else None
    if not isinstance(cls, type) or not hasattr(cls, "from_pretrained"):
        raise ModelError(
            "CK-L042",
            f"transformers has no model class {names[0]!r:.80}" if names else "config.json names no model class",
            where=str(path / "config.json"),
            fix="give auto_class, for example AutoModel",
        )
    return cls


def register_with(registry: ModuleType) -> None:
    """Enter our loader into ``transformers.quantizers.auto``; again after that module was reloaded."""
    if registry.AUTO_QUANTIZER_MAPPING.get(METHOD) is LayoutLoader:
        return
    registry.AUTO_QUANTIZATION_CONFIG_MAPPING.pop(METHOD, None)
    registry.AUTO_QUANTIZER_MAPPING.pop(METHOD, None)
    registry.register_quantization_config(METHOD)(CompressedConfig)
    registry.register_quantizer(METHOD)(LayoutLoader)


_registry = sys.modules.get("transformers.quantizers.auto")
if _registry is not None and hasattr(_registry, "register_quantizer"):
    # Imported directly: transformers' registry may have been filled while this module was not ready yet.
    register_with(_registry)
