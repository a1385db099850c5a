"""An embedding table in product codes: a few bytes a row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compresskit.nn.quantized import QuantizedLayer
from compresskit.registry import register_layer


@register_layer
class ProductEmbedding(QuantizedLayer):
    """A table whose rows are put together from P short vectors, each one of 256 in its own codebook.

    Jégou et al. 2011. A lookup gathers P codes and P vectors; in ONNX two Gathers, with no measurable time.

    Args:
        rows, columns: V, D.
        parts: P; it divides D.
        entries: vectors of a codebook, at most 256.
        padding_idx: as in ``nn.Embedding``; kept for code that asks for it.
    """

    kind: ClassVar[str] = "product_embedding"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"books"})

    def __init__(self, rows: int, columns: int, parts: int, entries: int = 256, padding_idx: int | None = None) -> None:
        super().__init__()
        if columns % parts or not 1 <= entries <= 256:
            raise ValueError(f"no table of {columns} columns in {parts} parts with {entries} entries")
        self.rows, self.columns, self.parts, self.entries, self.padding_idx = rows, columns, parts, entries, padding_idx
        self.codes = nn.Parameter(torch.empty(rows, parts, dtype=torch.uint8), requires_grad=False)
        books = torch.empty(parts, entries, columns // parts, dtype=torch.float16)
        self.books = nn.Parameter(books, requires_grad=False)

    @classmethod
    def from_codes(cls, codes: Tensor, books: Tensor, padding_idx: int | None, dtype: torch.dtype) -> ProductEmbedding:
        """From codes (V, P) and codebooks (P, K, D / P); the model computes in ``dtype``."""
        parts, entries, width = books.shape
        layer = cls(codes.shape[0], parts * width, parts, entries, padding_idx).to(codes.device, dtype)
        layer.codes.data, layer.books.data = codes.contiguous(), books.to(torch.float16).contiguous()
        return layer

    @property
    def num_embeddings(self) -> int:
        """V, as ``nn.Embedding`` calls it."""
        return self.rows

    @property
    def embedding_dim(self) -> int:
        """D, as ``nn.Embedding`` calls it."""
        return self.columns

    @property
    def weight(self) -> Tensor:
        return self._decoded(self.codes)

    def _decoded(self, codes: Tensor) -> Tensor:
        """Rows (…, D) of ``codes`` (…, P)."""
        places = codes.long() + self.entries * torch.arange(self.parts, device=codes.device)
        found = torch.nn.functional.embedding(places, self.books.flatten(0, 1))
        return found.flatten(-2).to(self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self._decoded(torch.nn.functional.embedding(ids, self.codes))

    def parameter_count(self) -> int:
        return self.rows * self.columns

    def arguments(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "columns": self.columns,
            "parts": self.parts,
            "entries": self.entries,
            "padding_idx": self.padding_idx,
        }

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, parts={self.parts}, entries={self.entries}"
