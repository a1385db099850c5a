from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compresskit.checkpoint.save import save_checkpoint
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.quantization.embedding import Embedding
from compresskit.methods.quantization.kv_cache import KvCache
from compresskit.nn.kv_cache import QuantizedCacheLayer
from tests import models


def applied(name: str, **options: Any) -> tuple[Any, Context]:
    model, method, context = models.tiny(name, task="lm"), KvCache(**options), Context()
    method.apply(model, resolve(model, method).sites, context)
    return model, context


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_generate_uses_it_after_reload(name: str, tmp_path: Path) -> None:
    model, context = applied(name, bits=2, group=4, residual=4)
    assert len(context.details) == models.LAYERS
    before, after = next(iter(context.details.values()))["bytes_per_token"]
    assert before > 3 * after
    ids = models.inputs(name, 2, 16)["input_ids"]
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    options |= {"return_dict_in_generate": True, "eos_token_id": None}
    wanted = model.generate(ids, **options)
    assert all(isinstance(layer, QuantizedCacheLayer) for layer in wanted.past_key_values.layers)
    again = AutoModelForCausalLM.from_pretrained(save_checkpoint(model, tmp_path / "out", source=None).path).eval()
    for other in (again, copy.deepcopy(model)):
        found = other.generate(ids, **options)
        assert torch.equal(torch.stack(found.logits), torch.stack(wanted.logits))
    stock: Any = models.tiny(name, task="lm")
    plain = stock.generate(ids, **options)
    assert not torch.equal(torch.stack(plain.logits), torch.stack(wanted.logits))
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, stock(ids, use_cache=False).logits)


def test_a_single_pass_feels_it_where_asked() -> None:
    batch = models.inputs("llama", 2, 32)
    plain = models.output(models.tiny("llama", task="lm"), batch)
    for prefill, same in (("exact", True), ("quantized", False)):
        model, _ = applied("llama", bits=2, group=8, residual=8, prefill=prefill)
        assert torch.equal(models.output(model, batch), plain) is same


def test_sixteen_bits_are_the_identity() -> None:
    model, context = applied("llama", bits=16)
    assert KvCache(bits=16).nothing_asked()
    assert not context.details
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_only_decoders_have_it(name: str) -> None:
    model = models.tiny(name)
    with pytest.raises(RecipeError, match="cache") as caught:
        resolve(model, KvCache())
    assert caught.value.code == "CK-T014"


def test_the_ledger_counts_in_the_type_of_the_model_not_of_its_codes() -> None:
    model, method, context = models.tiny("llama", task="lm"), KvCache(bits=4, group=4), Context()
    table = Embedding(bits=8)
    table.apply(model, resolve(model, table).sites, Context())
    method.apply(model, resolve(model, method).sites, context)
    part = resolve(model, method).sites[0].part
    before, _ = next(iter(context.details.values()))["bytes_per_token"]
    assert before == 2 * part.kv_heads * part.head_dim * 4
