"""The benchmark of weight-only methods on language models, on tiny ones: rows, resume, and what the order says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpt2_small
from benchmarks.language_quantization import METHODS, Bench, bench_of, fill, lines, order
from benchmarks.quantization_curve import compressed
from compresskit import registry
from compresskit.calibrate.batches import tokenize
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog", "good film we like it not but the book", "the dog sat"]


def tiny_bench() -> Bench:
    model, tokenizer = models.tiny("llama", task="lm"), models.tokenizer()
    batches = tokenize(TEXTS, tokenizer, model, 16)
    return Bench(model, batches, batches)


def test_a_small_gpt2_is_trained_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_small, "SHAPE", {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 16})
    data = tmp_path / "texts.txt"
    data.write_text("".join(f"the cat number {n} sat on mat {n % 7} and looked at dog {n % 5}\n" for n in range(120)))
    told = gpt2_small.build(tmp_path / "model", data, steps=3, size=300)
    assert told["texts"] == 108
    assert 250 < told["vocabulary"] <= 300
    assert told["losses"][-1] < told["losses"][0]
    bench = bench_of(tmp_path / "model", lines(tmp_path / "model" / "train.jsonl")[:4],
                     lines(tmp_path / "model" / "heldout.jsonl"))  # fmt: skip
    assert sum(p.numel() for p in bench.model.parameters()) == told["parameters"]
    assert len(lines(tmp_path / "model" / "heldout.jsonl")) == 12


def test_the_same_seed_trains_the_same_model() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 8}
        model: Any = gpt2_small.model_of(40, 0, shape)
        gpt2_small.train(model, torch.arange(200) % 40, 3, 2, 1e-3, 0)
        found.append(model.transformer.h[0].attn.c_attn.weight.detach())
    assert torch.equal(*found)


def test_uneven_matrices_get_a_scale_a_row_and_none_is_left() -> None:
    bench = tiny_bench()
    width = bench.model.config.intermediate_size
    assert bench.model.config.hidden_size % width, "all but one matrix of a block have columns that don't divide"
    found = [
        compressed(bench.model, "quantization.rtn", {"group": width}, bench.calibration, indivisible=instead)
        for instead in (None, {"per": "channel"})
    ]
    layers = bench.model.config.num_hidden_layers
    assert [made["matrices"] for made in found] == [layers, 7 * layers]


def test_rows_that_are_there_are_kept_and_more_bits_are_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = tiny_bench()
    content: dict[str, Any] = {"rows": {}}
    output = tmp_path / "out.json"
    given = ("tiny", bench, content, output, (8, 2), (16,), ("gptq",))
    fill(*given)
    rows: dict[str, Any] = content["rows"]
    assert list(rows) == ["tiny/fp32", "tiny/gptq/8/g16", "tiny/gptq/2/g16"]
    assert json.loads(output.read_text()) == content
    assert rows["tiny/gptq/8/g16"]["kl"] < rows["tiny/gptq/2/g16"]["kl"]
    monkeypatch.setattr(bench, "row", lambda *_: pytest.fail("made again"))
    fill(*given)


def test_the_order_by_hand() -> None:
    def rows(**perplexities: float) -> dict[str, dict[str, Any]]:
        made = {f"m/{label}/4/g32": {"perplexity": p, "kl": p / 100} for label, p in perplexities.items()}
        return {"m/fp32": {"perplexity": 10.0}, **made}

    good = order(rows(rtn=12.0, hqq=11.5, awq=12.5, gptq=11.0))["m/4/g32"]
    assert good["perplexity"]
    assert good["kl"]
    assert good["within"]["gptq"] == pytest.approx(0.1)
    near = order(rows(rtn=12.0, hqq=11.5, awq=11.5, gptq=11.505))["m/4/g32"]
    assert near["perplexity"]
    assert not near["kl"], "divergences are compared as they are"
    assert not order(rows(rtn=11.0, hqq=11.5, awq=11.6, gptq=10.0))["m/4/g32"]["perplexity"]
    assert order(rows(rtn=12.0, hqq=11.5, gptq=11.0)) == {}, "a method is missing"


def test_the_methods_take_their_options() -> None:
    for name, options in METHODS.values():
        registry.method(name).model_validate({**options, "bits": 4, "group": 32})
