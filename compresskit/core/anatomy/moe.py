"""Decoders with experts: Mixtral."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from transformers import PreTrainedModel

from compresskit.core.anatomy.decoders import Llama
from compresskit.core.anatomy.family import register_family, uniform
from compresskit.core.anatomy.parts import Anatomy, Block, Experts

_NO_FFN = "its feed-forward networks are experts, stored in one piece: use pruning.experts"


@register_family
class Mixtral(Llama):
    """A Llama whose feed-forward networks are experts, fused into two parameters a block; a router beside them."""

    model_types: ClassVar[tuple[str, ...]] = ("mixtral",)

    def read(self, model: PreTrainedModel) -> Anatomy:
        return replace(super().read(model), lacks={"ffn": _NO_FFN})

    def _block(self, model: PreTrainedModel, path: str, index: int) -> Block:
        attention = self._attention(model, f"{path}.self_attn")
        mlp = f"{path}.mlp"
        count = int(model.get_submodule(f"{mlp}.experts").num_experts)  # type: ignore[arg-type]
        chosen = int(model.get_submodule(f"{mlp}.gate").top_k)  # type: ignore[arg-type]
        bank = Experts(f"{mlp}.experts", f"{mlp}.gate", count, chosen, mlp)
        return Block(path, index, (attention,), (), experts=(bank,))

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        super().sync_config(model, anatomy)
        count = uniform([bank.count for bank in anatomy.experts])
        chosen = uniform([bank.chosen for bank in anatomy.experts])
        if count is not None:
            model.config.num_local_experts = count
            if hasattr(model, "num_experts"):
                # The class with a language head repeats it, for its balancing loss.
                model.num_experts = count  # type: ignore[assignment]
        if chosen is not None:
            model.config.num_experts_per_tok = chosen
