"""A quantized cache of keys and values for decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.checkpoint.skeleton import model_dtype
from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.nn import kv_cache
from compresskit.numerics.key_values import bytes_per_token
from compresskit.registry import register


@register
class KvCache(Compressor):
    """Keys and values of tokens long past are kept in 2, 4 or 8 bits while a decoder writes.

    Keys have a scale for each channel and ``group`` tokens, values one for each token and ``group`` channels (KIVI);
    the newest ``residual`` tokens stay as they are. No weight changes and the file stays as large: it is the memory of
    long texts and large batches that shrinks, and each token takes a little longer. What is computed without a cache,
    such as the pipeline's own fidelity, doesn't feel it, nor a single pass over a prompt unless ``prefill`` says so.
    ONNX files keep a float cache.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "kv_cache"
    sites: ClassVar[frozenset[str]] = frozenset({"attention"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"memory"})
    paper: ClassVar[str] = "Liu et al. 2024, KIVI, arXiv 2402.02750"

    bits: Literal[2, 4, 8, 16] = Field(4, description="of each key and value; 16 leaves the cache as it is")
    group: int = Field(32, ge=1, le=4096, description="tokens of a key channel, channels of a value, with one scale")
    residual: int = Field(128, ge=0, le=2**20, description="newest tokens that stay in full precision")
    prefill: Literal["exact", "quantized"] = Field(
        "exact", description="whether a pass over many tokens sees them as they are, or as the cache keeps them"
    )

    def settings(self) -> dict[str, Any]:
        """As ``nn.kv_cache.install`` takes them."""
        return {"bits": self.bits, "group": self.group, "residual": self.residual, "prefill": self.prefill}

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int:
        """None of the weights: the gain is in the memory of the cache."""
        return 0

    def nothing_asked(self) -> str | None:
        return "the cache keeps its 16 bits or more" if self.bits == 16 else None

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        if site.part.cross or not site.part.causal:
            return "it keeps no cache of its own that grows: only decoders do"
        return kv_cache.why_not(model, model.get_submodule(site.path), self.settings(), site.part.head_dim)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.bits == 16:
            return
        width = model_dtype(model).itemsize
        for number, site in enumerate(sites):
            context.progress(number / len(sites), site.path)
            surgery.set_kv_cache(model, site.path, self.settings())
            heads, dim = site.part.kv_heads, site.part.head_dim
            after = bytes_per_token(heads, dim, self.bits, self.group, kv_cache.value_group(dim, self.group))
            context.details[site.path] = {"bytes_per_token": [2 * heads * dim * width, after], "bits": self.bits}
        context.progress(1.0, f"{len(sites)} caches of {self.bits} bits")
