"""What must hold after every step, whatever the method: the pipeline asks, not the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.outputs import outputs_of, result_mask
from compresskit.checkpoint.skeleton import computes_in_half
from compresskit.core import anatomy
from compresskit.core.context import Batch
from compresskit.errors import InternalError, ModelError
from compresskit.nn import kv_cache
from compresskit.numerics.finite import all_finite

FLOAT_TOLERANCE = 1e-5
INTEGER_COSINE = 0.999
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def hooks(model: nn.Module) -> set[tuple[str, str, int]]:
    """Every hook on ``model``: (module, kind, id); not the one that a layout brings back."""
    return {
        (path, kind, number)
        for path, module in model.named_modules()
        for kind in _HOOKS
        for number, hook in getattr(module, kind).items()
        if hook is not kv_cache.put_into
    }


def refuse_new_hooks(model: nn.Module, before: set[tuple[str, str, int]], step: str) -> None:
    """Raise if ``step`` left a hook behind: it would run, and be lost at save."""
    left = hooks(model) - before
    if left:
        path, kind, _ = sorted(left)[0]
        raise InternalError("CK-T050", f"{step} left a hook on the model", where=f"{path} ({kind})")


def refuse_non_finite(model: nn.Module, outputs: Sequence[Tensor], step: str) -> None:
    """Raise if a parameter or an output is NaN or infinite after ``step``."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta" or not parameter.is_floating_point():
            continue
        if not all_finite(parameter):
            raise ModelError("CK-T051", f"{step} made values that are not finite", where=name)
    for batch, output in enumerate(outputs):
        if not bool(torch.isfinite(output).all()):
            raise ModelError("CK-T051", f"after {step} the model's output is not finite", where=f"probe batch {batch}")


def has_integer_layers(model: nn.Module) -> bool:
    """Whether some parameter is stored as integers, or floats of 8 bits.

    Rounding then makes outputs depend on batch order a little.
    """
    return any(not each.is_floating_point() or each.element_size() == 1 for each in model.parameters())


def scales_depend_on_batch(model: nn.Module) -> bool:
    """Whether a layer takes one activation scale for the whole batch."""
    return any(getattr(module, "activations", None) == "tensor" for module in model.modules())


def padding_deviation(model: PreTrainedModel, batch: Batch) -> tuple[float, float]:
    """How far rows of a padded batch are from the same rows run alone: (relative maximum, smallest cosine)."""
    worst, cosine = 0.0, 1.0
    # In float32: a cosine taken in bfloat16 is 0.996 or 1, whatever the rows are.
    together = outputs_of(model, batch).float()
    for row in range(batch["input_ids"].shape[0]):
        single = {key: _cut(key, value, row, batch) for key, value in batch.items()}
        alone = outputs_of(model, single)[0].float()
        beside = together[row] if together.dim() == 2 else together[row][result_mask(model, batch)[row]]
        scale = max(float(alone.abs().max()), 1e-6)
        worst = max(worst, float((alone - beside).abs().max()) / scale)
        cosine = min(cosine, float(nn.functional.cosine_similarity(alone.flatten(), beside.flatten(), dim=0)))
    return worst, cosine


def _cut(key: str, value: Tensor, row: int, batch: Batch) -> Tensor:
    """Row ``row`` without its padding; decoder inputs have a length, and perhaps a mask, of their own."""
    mask = batch.get("decoder_attention_mask" if key.startswith("decoder_") else "attention_mask")
    if mask is None or value.shape[1] != mask.shape[1]:
        return value[row : row + 1]
    return value[row : row + 1][:, mask[row].bool()]


def check_padding(model: PreTrainedModel, batch: Batch, step: str) -> str | None:
    """Raise if padding changes an output; a sentence for the report where it is known and allowed to."""
    worst, cosine = padding_deviation(model, batch)
    if scales_depend_on_batch(model):
        return f"per-tensor activation scales depend on the batch: padded rows differ by up to {worst:.1e} (relative)"
    if has_integer_layers(model) or computes_in_half(model):
        if cosine < INTEGER_COSINE:
            raise ModelError(
                "CK-T052", f"after {step} a padded batch gives other rows than single ones (cosine {cosine:.5f})"
            )
    elif worst > FLOAT_TOLERANCE:
        raise ModelError(
            "CK-T052", f"after {step} a padded batch gives other rows than single ones (relative {worst:.1e})"
        )
    return None


def check_cache(model: PreTrainedModel, batch: Batch, step: str) -> str | None:
    """Raise if greedy logits with a KV cache differ from those without; None for models that don't generate."""
    if not model.can_generate() or not anatomy.of(model).causal:
        return None
    ids = batch["input_ids"][:1][:, batch["attention_mask"][0].bool()][:, :12]
    if ids.shape[1] < 3:
        return None
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        head = model(input_ids=ids[:, :-2], use_cache=True)
        cache, parts = head.past_key_values, [head.logits]
        for position in (-2, -1):
            token = ids[:, position:] if position == -1 else ids[:, position : position + 1]
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    pieces = torch.cat(parts, dim=1)
    scale = max(float(whole.abs().max()), 1e-6)
    worst = float((whole - pieces).abs().max()) / scale
    if any(kv_cache.settings_of(module) for module in model.modules()):
        return f"keys and values are kept in a few bits: cached steps differ by up to {worst:.1e} (relative)"
    if scales_depend_on_batch(model):
        return f"per-tensor activation scales depend on the length: cached steps differ by up to {worst:.1e} (relative)"
    if has_integer_layers(model) or computes_in_half(model):
        cosine = float(nn.functional.cosine_similarity(whole.flatten().float(), pieces.flatten().float(), dim=0))
        if cosine < INTEGER_COSINE:
            raise ModelError("CK-T053", f"after {step} cached decoding differs (cosine {cosine:.5f})")
    elif worst > 10 * FLOAT_TOLERANCE:
        raise ModelError("CK-T053", f"after {step} cached decoding differs (relative {worst:.1e})")
    return None


def changed(before: Mapping[str, tuple[object, ...]], after: Mapping[str, tuple[object, ...]]) -> bool:
    """Whether two fingerprints differ."""
    return dict(before) != dict(after)
