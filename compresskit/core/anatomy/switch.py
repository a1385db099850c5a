"""Switch Transformers: T5 with experts in some blocks, each with linear layers of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from transformers import PreTrainedModel

from compresskit.core.anatomy.family import register_family, rows_of, uniform
from compresskit.core.anatomy.parts import Anatomy, Block, Experts, FeedForward, Stack
from compresskit.core.anatomy.t5 import T5

_NO_FFN = "its feed-forward networks are experts, which are as wide as each other"
_PINNED = "the config says by the number of blocks which of them have experts"


@register_family
class Switch(T5):
    """Blocks with one dense feed-forward network, or a router and experts; of these the matrices are sites."""

    model_types: ClassVar[tuple[str, ...]] = ("switch_transformers",)

    def read(self, model: PreTrainedModel) -> Anatomy:
        return replace(super().read(model), model_type="switch_transformers", lacks={"ffn": _NO_FFN})

    def _block(self, model: PreTrainedModel, stack: str, stack_path: str, index: int) -> Block:
        path = f"{stack_path}.{index}"
        decoder = stack == "decoder"
        attentions = [self._attention(model, f"{path}.layer.0.SelfAttention", stack, cross=False)]
        if decoder:
            attentions.append(self._attention(model, f"{path}.layer.1.EncDecAttention", stack, cross=True))
        mlp = f"{path}.layer.{2 if decoder else 1}.mlp"
        module = model.get_submodule(mlp)
        if not hasattr(module, "experts"):
            ffn = FeedForward(mlp, (f"{mlp}.wi",), f"{mlp}.wo", rows_of(model, f"{mlp}.wi"))
            return Block(path, index, tuple(attentions), (ffn,), pinned=_PINNED)
        count = int(model.get_submodule(f"{mlp}.experts").num_experts)  # type: ignore[arg-type]
        bank = Experts(f"{mlp}.experts", f"{mlp}.router", count, 1, mlp)
        return Block(path, index, tuple(attentions), (), pinned=_PINNED, experts=(bank,))

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        config = model.config
        heads = uniform([attention.heads for attention in anatomy.attentions])
        widths = [ffn.width for ffn in anatomy.ffns]
        widths += [rows_of(model, f"{bank.path}.expert_0.wi") for bank in anatomy.experts]
        width, count = uniform(widths), uniform([bank.count for bank in anatomy.experts])
        stacks: list[Stack] = list(anatomy.stacks)
        configs = [config, *(model.get_submodule(stack.path.rpartition(".")[0]).config for stack in stacks)]
        for each in configs:
            if width is not None:
                each.d_ff = width  # type: ignore[union-attr]
            if heads is not None:
                each.num_heads = heads  # type: ignore[union-attr]
            if count is not None:
                each.num_experts = count  # type: ignore[union-attr]
