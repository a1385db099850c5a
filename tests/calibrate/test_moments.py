from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.calibrate.batches import random_batches
from compresskit.calibrate.moments import (
    Moments,
    block_similarities,
    input_moments,
    input_samples,
    site_moments,
    site_samples,
)
from compresskit.core import anatomy
from compresskit.core.surgery import share_module
from compresskit.core.targets import candidates
from compresskit.errors import DataError
from compresskit.numerics.moments import block_influence, moments_of_rows
from tests import models


def captured(model: nn.Module, path: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """All input rows of one module, padding too, (B * T, I)."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in seen])


def matrix_paths(model: nn.Module) -> list[str]:
    body = anatomy.of(model)
    paths = [path for attention in body.attentions for path in attention.members]
    return list(dict.fromkeys(paths + [path for ffn in body.ffns for path in ffn.members]))


def test_a_shared_matrix_is_measured_at_every_place() -> None:
    model = models.tiny("bert")
    share_module(model, "encoder.layer.0.intermediate.dense", "encoder.layer.2.intermediate.dense")
    batches = random_batches(model, samples=6, max_length=10, batch_size=3)
    first, second = "encoder.layer.0.intermediate.dense", "encoder.layer.2.intermediate.dense"
    (site,) = (site for site in candidates(model, frozenset({"matrix"})) if site.path == first)
    single = input_moments(model, [first, second], batches)
    found = site_moments(model, site, batches)
    assert found.count == single[first].count + single[second].count
    torch.testing.assert_close(found.gram, single[first].gram + single[second].gram)
    torch.testing.assert_close(found.abs_max, torch.maximum(single[first].abs_max, single[second].abs_max))
    rows = site_samples(model, site, batches, 20)
    apart = input_samples(model, [first, second], batches, 10)
    assert {tuple(row.tolist()) for row in rows} == {tuple(row.tolist()) for rows in apart.values() for row in rows}


def test_moments_equal_the_plain_loop_on_attended_tokens(family: str) -> None:
    model = models.tiny(family)
    batches = random_batches(model, samples=6, max_length=10, batch_size=3)
    paths = matrix_paths(model)
    found = input_moments(model, paths, batches)
    assert list(found) == paths
    decoder = {path for block in anatomy.of(model).stacks[-1].blocks for path in paths if path.startswith(block.path)}
    crossed = {rows.path for part in anatomy.of(model).attentions if part.cross for rows in (part.key, part.value)}
    for path in (paths[0], paths[1], paths[-2], paths[-1], *list(crossed)[:2]):
        of_decoder = family == "t5" and path in decoder and path not in crossed
        name = "decoder_attention_mask" if of_decoder else "attention_mask"
        rows = torch.cat([captured(model, path, batch) for batch in batches])
        runs = rows.shape[0] // sum(batch[name].numel() for batch in batches)
        mask = torch.cat([batch[name].flatten().repeat(runs).bool() for batch in batches])
        expected = moments_of_rows(rows, mask)
        moments = found[path]
        assert moments.count == expected.count
        torch.testing.assert_close(moments.gram, expected.gram, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(moments.total, expected.total, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(moments.square_sum, expected.square_sum, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.abs_mean, expected.abs_sum / expected.count, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.abs_max, expected.abs_max, rtol=0, atol=0)


def test_padding_counts_for_nothing() -> None:
    model = models.tiny("bert")
    path = "encoder.layer.1.output.dense"
    batch = models.inputs("bert", batch=3, length=12, padded=True)
    longer = {name: nn.functional.pad(tensor, (0, 9), value=models.PAD) for name, tensor in batch.items()}
    longer["attention_mask"][:, 12:] = 0
    short, long = (input_moments(model, [path], [each])[path] for each in (batch, longer))
    assert short.count == long.count == int(batch["attention_mask"].sum())
    torch.testing.assert_close(short.gram, long.gram, rtol=1e-4, atol=1e-4)


def test_modules_with_one_input_share_their_moments() -> None:
    model = models.tiny("llama", task="lm")
    prefix = "model.layers.0"
    paths = [f"{prefix}.self_attn.{name}_proj" for name in "qkvo"] + [f"{prefix}.mlp.{n}_proj" for n in ("gate", "up")]
    found = input_moments(model, paths, random_batches(model))
    assert found[paths[0]] is found[paths[1]] is found[paths[2]]
    assert found[paths[3]] is not found[paths[0]]
    assert found[paths[4]] is found[paths[5]]


def test_keys_of_cross_attention_see_the_encoders_tokens() -> None:
    model = models.tiny("t5", task="lm")
    batch = random_batches(model, samples=3, max_length=11)[0]
    cross = "decoder.block.1.layer.1.EncDecAttention"
    found = input_moments(model, [f"{cross}.q", f"{cross}.k", "lm_head"], [batch])
    assert found[f"{cross}.q"].count == int(batch["decoder_attention_mask"].sum())
    assert found[f"{cross}.k"].count == int(batch["attention_mask"].sum())
    assert found["lm_head"].count == int(batch["decoder_attention_mask"].sum())


def test_a_pooled_input_is_taken_whole() -> None:
    model = models.tiny("bert", task="classifier")
    found = input_moments(model, ["classifier"], random_batches(model, samples=8))
    assert found["classifier"].count == 8


def test_an_unreached_module_is_named() -> None:
    model = models.tiny("bert")
    model.add_module("unused", nn.Linear(64, 64))
    with pytest.raises(DataError, match="unused") as caught:
        input_moments(model, ["encoder.layer.0.output.dense", "unused"], random_batches(model))
    assert caught.value.code == "CK-D011"


def test_stopping_early_gives_the_same_moments() -> None:
    model = models.tiny("gpt2")
    batches = random_batches(model)
    stopped = input_moments(model, ["h.0.mlp.c_proj"], batches, stop_after="h.0")
    torch.testing.assert_close(
        stopped["h.0.mlp.c_proj"].gram, input_moments(model, ["h.0.mlp.c_proj"], batches)["h.0.mlp.c_proj"].gram
    )
    with pytest.raises(DataError, match=r"h\.1"):
        input_moments(model, ["h.1.mlp.c_proj"], batches, stop_after="h.0")


def test_later_passes_end_behind_the_last_module_that_is_asked_for() -> None:
    model = models.tiny("bert")
    batches = random_batches(model, samples=6, batch_size=2)
    runs: list[int] = []
    model.encoder.layer[1].register_forward_hook(lambda *_: runs.append(1))
    path = "encoder.layer.0.output.dense"
    assert input_moments(model, [path], batches)[path].count == sum(
        int(each["attention_mask"].sum()) for each in batches
    )
    assert len(runs) == 1


def test_a_module_that_the_first_batch_does_not_reach_gets_all_that_later_ones_bring() -> None:
    model = models.tiny("bert")
    batches = random_batches(model, samples=6, batch_size=2)
    paths = ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"]
    block = model.encoder.layer[1]
    plain, calls = block.forward, []

    def passed_over_at_first(hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
        calls.append(1)
        return hidden if len(calls) == 1 else plain(hidden, *args, **kwargs)

    block.forward = passed_over_at_first
    found = input_moments(model, paths, batches)
    tokens = [int(each["attention_mask"].sum()) for each in batches]
    assert [found[path].count for path in paths] == [sum(tokens), sum(tokens[1:])]


@pytest.mark.parametrize("features", [256, 300, 600])
def test_grams_in_panels_are_whole_and_symmetric(features: int) -> None:
    rows = torch.randn(40, features, generator=torch.Generator().manual_seed(0))
    moments = Moments.empty(features, gram=True)
    for part in rows.split(16):
        moments.add(part)
    gram = moments.gram
    assert gram is not None
    assert torch.equal(gram, gram.T)
    torch.testing.assert_close(gram, rows.double().T @ rows.double(), rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = models.tiny("bert").train()
    model.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    input_moments(model, ["encoder.layer.0.output.dense"], random_batches(model))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_come_off_after_a_failure() -> None:
    model = models.tiny("bert")
    with pytest.raises(IndexError):
        input_moments(model, ["encoder.layer.0.output.dense"], [{"input_ids": torch.full((1, 4), 10**6)}])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_values_that_are_not_finite_are_refused() -> None:
    model = models.tiny("bert")
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.bias[3] = torch.nan
    with pytest.raises(DataError) as caught:
        input_moments(model, ["encoder.layer.0.output.dense"], random_batches(model))
    assert caught.value.code == "CK-D012"


def test_no_batches_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        input_moments(models.tiny("bert"), ["encoder.layer.0.output.dense"], [])
    assert caught.value.code == "CK-D003"


def test_samples_are_attended_rows_of_all_batches() -> None:
    model = models.tiny("bert")
    batches = random_batches(model, samples=8, max_length=12)
    path = "encoder.layer.2.intermediate.dense"
    rows = input_samples(model, [path], batches, 20)[path]
    assert rows.shape == (20, 64)
    everything = torch.cat([captured(model, path, batch) for batch in batches])
    mask = torch.cat([batch["attention_mask"].flatten() for batch in batches]).bool()
    distances = torch.cdist(rows, everything[mask], compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert float(distances.max()) < 1e-6


def test_block_influence_equals_the_plain_loop(family: str) -> None:
    model = models.tiny(family)
    batch = random_batches(model, samples=3, max_length=9)[0]
    stack = anatomy.of(model).stacks[-1]
    path = stack.blocks[-1].path
    ends: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _m, args, out: ends.append((args[0], out if isinstance(out, torch.Tensor) else out[0]))
    )
    with torch.no_grad():
        model(**batch)
    handle.remove()
    mask = batch["decoder_attention_mask" if family == "t5" else "attention_mask"].bool()
    expected = block_influence(torch.cat([a[mask] for a, _ in ends]), torch.cat([b[mask] for _, b in ends]))
    assert block_similarities(model, [path], [batch])[path] == pytest.approx(expected, abs=1e-6)


def test_a_block_that_does_nothing_has_no_influence() -> None:
    model = models.tiny("llama")
    with torch.no_grad():
        model.layers[1].self_attn.o_proj.weight.zero_()
        model.layers[1].mlp.down_proj.weight.zero_()
    found = block_similarities(model, ["layers.0", "layers.1", "layers.2"], random_batches(model))
    assert found["layers.1"] == pytest.approx(0, abs=1e-6)
    assert min(found["layers.0"], found["layers.2"]) > 0.01
