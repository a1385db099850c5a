"""What the quantization methods share."""

from __future__ import annotations

from transformers import PreTrainedModel

from compresskit.core.sites import Site
from compresskit.core.surgery import tied_elsewhere
from compresskit.core.weights import WeightView


def tied_to(model: PreTrainedModel, site: Site) -> list[str]:
    """Modules of another kind that use the site's weight; its bias may be shared."""
    weight = model.get_submodule(site.path).weight
    return [
        path
        for path in tied_elsewhere(model, site.path)
        if getattr(model.get_submodule(path), "weight", None) is weight
    ]


def weight_bytes(plain: WeightView) -> int:
    """Bytes of the matrix as it is stored now."""
    return plain.weight.numel() * plain.weight.element_size()
