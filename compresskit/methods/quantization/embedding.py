"""``quantization.embedding``: lookup tables in 2 to 8 bits, and the tied head with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.compressor import Compressor, Gain, Streams
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.quantization._shared import weight_bytes
from compresskit.methods.quantization._tables import install_table, refuse_table, table_bytes
from compresskit.nn.embedding import Bits
from compresskit.registry import register


@register
class Embedding(Compressor):
    """Embedding tables in 2 to 8 bits, a scale for each row or group; a head tied to a table shares its codes.

    In small encoders the table is half of the file: compressing the blocks alone can't make it small. Tables of words,
    positions and token types are taken; a relative position table, a few hundred numbers, is not.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "embedding"
    sites: ClassVar[frozenset[str]] = frozenset({"embedding"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    streams: ClassVar[Streams | None] = "site"
    paper: ClassVar[str] = "Shen et al., Q-BERT (group-wise), 2020 (arXiv 1909.05840); scales by least squares"

    bits: Bits = Field(8, description="8: symmetric; less: packed without gaps, with zero points and float16 scales")
    group: int | None = Field(None, ge=2, description="columns that share a scale; none: the whole row")

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """What codes, scales and zero points take less than the table."""
        saved = 0
        for site in sites:
            plain = view(model, site.path)
            saved += weight_bytes(plain) - table_bytes(plain, self.bits, self.group)
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_table(model, site.path, self.bits, self.group)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            install_table(model, site.path, self.bits, self.group, context)
            context.progress((number + 1) / len(sites), site.path)
