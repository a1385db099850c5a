"""The attention named ``compresskit``: registered once with transformers, its settings on the modules.

A module without settings runs ordinary softmax attention, so that a model may mix. One with settings (``install``)
reads the model's config through a ``PinnedConfig``, which always names this attention: whatever the user, an exporter
or the loader sets on the model (``attn_implementation=``, ``set_attn_implementation``), it goes on computing what
its settings say, with the mask in whichever form then arrives.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from compresskit.errors import ModelError
from compresskit.nn.attention_mask import attention_mask, read_mask, stock_mask
from compresskit.nn.base import exporting
from compresskit.nn.linear_attention import FEATURE_MAPS, linear_attention
from compresskit.nn.window_attention import window_attention

NAME = "compresskit"
ATTRIBUTE = "compresskit_attention"
_IMPLEMENTATION = ("_attn_implementation", "_attn_implementation_internal")
_LARGEST = 2**31 - 1
# What other attentions of transformers add to the computation, and these don't.
_FOREIGN = ("softcap", "s_aux", "cache")


class PinnedConfig:
    """The config ``stock`` of a model as one of its modules sees it: all the same, but for the attention's name.

    Reading and writing go through to ``stock``; the attention's name stays, whatever is assigned to it.
    """

    __slots__ = ("stock",)

    def __init__(self, stock: Any) -> None:
        object.__setattr__(self, "stock", stock)

    def __getattr__(self, name: str) -> Any:
        # Special names are asked for by copy and pickle before `stock` is there.
        if name == "stock" or name.startswith("__"):
            raise AttributeError(name)
        return NAME if name in _IMPLEMENTATION else getattr(self.stock, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "stock":
            object.__setattr__(self, name, value)
        elif name not in _IMPLEMENTATION:
            setattr(self.stock, name, value)


def settings_of(module: nn.Module) -> dict[str, Any] | None:
    """What the attention module computes instead of softmax attention, or None."""
    return getattr(module, ATTRIBUTE, None)


def checked(settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``settings``, complete and valid.

    ``{"kind": "window", "window": 128, "global_tokens": 1}`` or ``{"kind": "linear", "feature_map": "elu"}``.

    Raises:
        ModelError: CK-L061 for unknown or impossible settings.
    """
    given = dict(settings)
    kind = given.pop("kind", None)
    if kind == "window":
        whole = {"window": given.pop("window", None), "global_tokens": given.pop("global_tokens", 0)}
        fits = _is_count(whole["window"], 1) and _is_count(whole["global_tokens"], 0)
    else:
        whole = {"feature_map": given.pop("feature_map", "elu")}
        fits = kind == "linear" and whole["feature_map"] in FEATURE_MAPS
    if given or not fits:
        raise ModelError(
            "CK-L061",
            f"these are no attention settings: {settings!r}",
            why=f"unknown: {', '.join(map(str, given))}" if given else "",
            fix="upgrade compresskit if the checkpoint was written by a newer version",
        )
    return {"kind": kind, **whole}


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST


def why_not(model: PreTrainedModel, module: nn.Module, settings: dict[str, Any]) -> str | None:
    """Why ``module`` of ``model`` can't compute what ``settings`` say, in a sentence, or None."""
    name = type(module).__name__
    reached = type(model)._can_set_attn_implementation() and hasattr(module, "config")
    if not reached or getattr(module.config, "_attn_implementation", None) is None:
        return f"{name} computes its attention itself and never asks transformers' AttentionInterface"
    linear = settings["kind"] == "linear"
    if linear and hasattr(module, "has_relative_attention_bias"):
        return (
            "its only knowledge of positions is a bias added to the softmax's scores, which a linear attention can't "
            "add; without it the order of the words would be lost"
        )
    sliding = stock_window(module)
    if sliding is not None and linear:
        return f"it is a sliding window of {sliding} already, and its cache drops the keys that linear attention sums"
    if sliding is not None and settings["global_tokens"]:
        return (
            f"it is a sliding window of {sliding} already, whose cache drops the first tokens: set global_tokens to 0"
        )
    return None


def stock_window(module: nn.Module) -> int | None:
    """The sliding window that the stock layer has (Mistral, some layers of Qwen), or None."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window  # type: ignore[return-value]
    return getattr(getattr(module, "config", None), "sliding_window", None)


def install(model: PreTrainedModel, module: nn.Module, settings: dict[str, Any] | None) -> None:
    """Let the attention ``module`` of ``model`` compute what ``settings`` say; None gives softmax attention back.

    The one way in, for methods and for the replay of a layout.

    Raises:
        ModelError: CK-L061 for bad settings, CK-M051 where the module can't compute them.
    """
    if settings is None:
        _uninstall(model, module)
        return
    settings = checked(settings)
    reason = why_not(model, module, settings)
    if reason is not None:
        raise ModelError(
            "CK-M051", f"the attention of {type(module).__name__} can't be replaced by {settings['kind']}", why=reason
        )
    config: Any = module.config
    if not isinstance(config, PinnedConfig):
        module.config = PinnedConfig(config)  # type: ignore[assignment]
    setattr(module, ATTRIBUTE, settings)
    _switch(model, "sdpa", NAME)


def _uninstall(model: PreTrainedModel, module: nn.Module) -> None:
    config: Any = getattr(module, "config", None)
    if isinstance(config, PinnedConfig):
        module.config = config.stock
        delattr(module, ATTRIBUTE)
    if not any(settings_of(each) for each in model.modules()):
        _switch(model, NAME, "sdpa")


def _switch(model: PreTrainedModel, old: str, new: str) -> None:
    """Let the model and the models in it make the masks of ``new``; where the user chose another, that stays."""
    for each in model.modules():
        if isinstance(each, PreTrainedModel) and each.config._attn_implementation == old:
            each.config._attn_implementation_internal = new


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for every attention module of a model whose attention is named ``compresskit``.

    Args:
        query: (B, H, Q, D). key, value: (B, H', K, D).
        attention_mask: in any form of ``nn.attention_mask``.

    Returns:
        (B, Q, H, D), and None in place of attention weights.

    Raises:
        ModelError: CK-M053 where the module's settings can't be computed on these arguments.
    """
    settings = settings_of(module)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if settings is None or _reaches_all(settings, key):
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            lengths = query.shape[2], key.shape[2]
            attention_mask = stock_mask(attention_mask, *lengths, causal=causal, sliding=sliding_window)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **more
        )
    foreign = [name for name in _FOREIGN if more.get(name) is not None]
    if foreign:
        raise _impossible(module, f"this model adds {foreign[0]!r} to its attention")
    if not causal and query.shape[2] is not key.shape[2] and query.shape[2] != key.shape[2]:
        raise _impossible(module, "its keys come from another sequence (cross-attention)")
    if attention_mask is None and causal and _is_static_prefill(module, query, key):
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        position_bias = None if position_bias is None else position_bias[..., : query.shape[2]]
    seen = read_mask(attention_mask, query, key, causal=causal, bias=position_bias)
    if settings["kind"] == "linear":
        return linear_attention(query, key, value, seen, feature_map=settings["feature_map"]), None
    window = settings["window"] if sliding_window is None else min(settings["window"], sliding_window)
    extra = settings["global_tokens"]
    return window_attention(
        query, key, value, seen, window=window, global_tokens=extra, scaling=scaling, dropout=dropout
    ), None


def _reaches_all(settings: dict[str, Any], key: Tensor) -> bool:
    """Whether the window is as long as the sequence, so that softmax attention is the same and cheaper."""
    return settings["kind"] == "window" and not exporting() and key.shape[2] <= settings["window"]


def _is_static_prefill(module: nn.Module, query: Tensor, key: Tensor) -> bool:
    """No mask, several queries, more keys: a static cache not yet filled, but with flash attention a dynamic one."""
    config: Any = module.config
    flash = "flash" in str(config.stock._attn_implementation)
    return not exporting() and 1 < query.shape[2] < key.shape[2] and not flash


def _impossible(module: nn.Module, why: str) -> ModelError:
    kind = (settings_of(module) or {}).get("kind")
    return ModelError("CK-M053", f"the {kind} attention of {type(module).__name__} can't be computed", why=why)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, attention_mask)
