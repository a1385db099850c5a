"""Sliding-window attention with global tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.attention._shared import AttentionReplacement
from compresskit.registry import register


@register
class WindowAttention(AttentionReplacement):
    """Softmax attention to near tokens and a few global ones, with a cost that is linear in the length.

    Token i sees token j where |i - j| < window, and the first ``global_tokens`` real tokens of the sequence. In an
    encoder those also see every token (Longformer); in a decoder they are the sinks that keep a trained softmax steady
    (StreamingLLM), and a token sees only itself and those before. A window as long as the sequence is exact. Saves
    time from some hundred tokens on, and no bytes of the file.
    """

    name: ClassVar[str] = "window"
    paper: ClassVar[str] = "Beltagy et al. 2020, arXiv 2004.05150; Xiao et al. 2023, arXiv 2309.17453"

    window: int = Field(128, ge=1, le=2**31 - 1, description="tokens on each side that one sees, itself counted")
    global_tokens: int = Field(
        1, ge=0, le=4096, description="first tokens of the sequence that all see; in encoders they see all"
    )

    def settings(self) -> dict[str, Any]:
        return {"kind": "window", "window": self.window, "global_tokens": self.global_tokens}

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and self.window >= longest:
            context.warn(
                f"{self.full_name()} changes nothing: the window of {self.window} tokens is as long as the longest "
                f"input of this model, {longest}"
            )
        super().apply(model, sites, context)
