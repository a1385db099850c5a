"""Linear attention."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from compresskit.methods.attention._shared import AttentionReplacement
from compresskit.registry import register


@register
class LinearAttention(AttentionReplacement):
    """Kernel attention φ(q)·φ(k) in place of the softmax, with a cost that is linear in the length.

    The model was trained for the softmax, so its outputs change much: follow this step by recovery training, or keep
    softmax in some layers by ``targets``. Models whose positions are a bias on the scores (T5) are refused: a kernel
    can't carry it. Decoding reads the keys of the ordinary cache.
    """

    name: ClassVar[str] = "linear"
    paper: ClassVar[str] = "Katharopoulos et al. 2020, arXiv 2006.16236"

    feature_map: Literal["elu"] = Field("elu", description="φ; elu: elu(x) + 1")

    def settings(self) -> dict[str, Any]:
        return {"kind": "linear", "feature_map": self.feature_map}
