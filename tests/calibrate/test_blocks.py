from __future__ import annotations

import weakref
from mmap import PAGESIZE
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from compresskit.calibrate import blocks
from compresskit.calibrate.batches import random_batches
from compresskit.calibrate.blocks import BlockCalibration
from compresskit.calibrate.forward import hooked
from compresskit.calibrate.moments import input_moments
from compresskit.core import anatomy
from compresskit.errors import InternalError, ModelError
from tests import models


def damage(model: nn.Module, block: anatomy.Block) -> None:
    """What a method would do to a block: change its weights."""
    with torch.no_grad():
        for parameter in model.get_submodule(block.path).parameters():
            parameter.mul_(0.9)


def test_statistics_are_those_of_a_full_run_with_the_compressed_prefix(family: str) -> None:
    model = models.tiny(family)
    batches = random_batches(model, samples=6, max_length=10, batch_size=3)
    walk = BlockCalibration(batches)
    for block in anatomy.of(model).blocks:
        walk.enter(model, block.path)
        paths = [*block.attentions[0].members, *block.ffns[0].members]
        cached, full = (input_moments(model, paths, each) for each in (walk, batches))
        for path in paths:
            torch.testing.assert_close(cached[path].gram, full[path].gram, rtol=1e-6, atol=1e-6)
            assert cached[path].count == full[path].count
        damage(model, block)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_blocks_may_be_passed_over(name: str) -> None:
    model = models.tiny(name)
    batches = random_batches(model, samples=4, max_length=8)
    walk = BlockCalibration(batches)
    last = anatomy.of(model).blocks[-1]
    for block in (anatomy.of(model).blocks[0], last):
        walk.enter(model, block.path)
        damage(model, block)
    path = last.ffns[0].output
    torch.testing.assert_close(
        input_moments(model, [path], walk)[path].gram, input_moments(model, [path], batches)[path].gram
    )


def test_only_the_entered_block_is_run() -> None:
    model = models.tiny("bert")
    walk = BlockCalibration(random_batches(model))
    walk.enter(model, "encoder.layer.1")
    runs: list[int] = []
    for index, layer in enumerate(model.encoder.layer):
        # A hook on the inside tells a run of the block from the stand-in for its output.
        layer.output.register_forward_hook(lambda *_, index=index: runs.append(index))
    for part in (walk, walk[:1]):
        input_moments(model, ["encoder.layer.1.output.dense"], part)
    assert set(runs) == {1}


def test_hidden_states_are_kept_of_one_block_only() -> None:
    model = models.tiny("gpt2")
    walk = BlockCalibration(random_batches(model))
    walk.enter(model, "h.1")
    (before,) = walk._stored.values()
    given_up: list[int] = []
    model.get_submodule("h.1").register_forward_hook(lambda *_: given_up.append(sum(each is None for each in before)))
    walk.enter(model, "h.2")
    assert given_up == list(range(len(walk)))
    assert len(walk._stored) == 1


def test_large_hidden_states_lie_in_pages_of_their_own_and_go_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LARGE", 1)
    model = models.tiny("gpt2")
    batches = random_batches(model)
    walk = BlockCalibration(batches)
    walk.enter(model, "h.1")
    (outputs,) = walk._stored.values()
    first = [weakref.ref(output) for output in outputs]
    with torch.no_grad():
        for index, batch in enumerate(batches):
            given = walk.run(model, index)
            hidden = model(**batch, output_hidden_states=True).hidden_states[2]
            assert given is not None
            assert outputs[index].data_ptr() % PAGESIZE == 0
            assert torch.equal(given, hidden)
    walk.enter(model, "h.2")
    del outputs
    assert [output() for output in first] == [None] * len(batches)


def test_a_failed_pass_leaves_no_half_of_it() -> None:
    model = models.tiny("gpt2")
    batches = random_batches(model)
    walk = BlockCalibration(batches)
    walk.enter(model, "h.1")
    seen: list[int] = []

    def fail_at_the_second(*_: object) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise MemoryError

    handle = model.get_submodule("h.1").register_forward_hook(fail_at_the_second)
    with pytest.raises(MemoryError):
        walk.enter(model, "h.2")
    handle.remove()
    path = "h.1.mlp.c_proj"
    walk.enter(model, "h.1")
    torch.testing.assert_close(
        input_moments(model, [path], walk)[path].gram, input_moments(model, [path], batches)[path].gram
    )


def test_going_back_starts_anew() -> None:
    model = models.tiny("gpt2")
    batches = random_batches(model)
    walk = BlockCalibration(batches)
    walk.enter(model, "h.2")
    damage(model, anatomy.of(model).blocks[0])
    walk.enter(model, "h.1")
    path = "h.1.mlp.c_proj"
    torch.testing.assert_close(
        input_moments(model, [path], walk)[path].gram, input_moments(model, [path], batches)[path].gram
    )


def test_modules_outside_the_block_get_a_full_run() -> None:
    model = models.tiny("bert")
    batches = random_batches(model)
    walk = BlockCalibration(batches)
    walk.enter(model, "encoder.layer.1")
    assert not walk.holds(["encoder.layer.0.output.dense"])
    path = "encoder.layer.0.output.dense"
    torch.testing.assert_close(
        input_moments(model, [path], walk)[path].gram, input_moments(model, [path], batches)[path].gram
    )


def test_it_is_a_plain_sequence_of_batches() -> None:
    batches = random_batches(models.tiny("bert"))
    walk = BlockCalibration(batches)
    assert len(walk) == len(batches)
    assert list(walk) == batches
    assert list(walk[1:]) == batches[1:]


def test_an_unknown_block_is_refused() -> None:
    model = models.tiny("bert")
    with pytest.raises(InternalError) as caught:
        BlockCalibration(random_batches(model)).enter(model, "encoder.layer.7")
    assert caught.value.code == "CK-D014"


@pytest.mark.parametrize("name", ["bert", "t5encoder"])
def test_what_comes_before_the_blocks_is_run_once(name: str, tmp_path: Path) -> None:
    model = models.tiny(name)
    batches = random_batches(model, samples=6, max_length=10, batch_size=3)
    blocks = anatomy.of(model).blocks
    path = blocks[1].ffns[0].output
    expected = input_moments(model, [path], batches)[path].gram
    walk = BlockCalibration(batches, tmp_path)
    walk.begin(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    walk.enter(model, blocks[1].path)
    for part in (walk, walk[:]):
        assert isinstance(part, BlockCalibration)
        torch.testing.assert_close(input_moments(model, [path], part)[path].gram, expected, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == []
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("what", ["empty", "called twice"])
def test_what_comes_before_the_blocks_must_run_by_itself(what: str) -> None:
    model = models.tiny("llama")
    if what == "empty":
        model.embed_tokens.to("meta")
    else:

        def again(*_: object) -> None:
            model.embed_tokens(torch.tensor([1]))

        model.rotary_emb.register_forward_pre_hook(again)
    with pytest.raises(ModelError) as caught:
        BlockCalibration(random_batches(model)).begin(model)
    assert caught.value.code == "CK-L066"
    assert caught.value.where == "embed_tokens"


def test_a_settled_attention_is_run_once_more_and_changes_nothing(family: str) -> None:
    model = models.tiny(family)
    batches = random_batches(model, samples=4, max_length=12, batch_size=2)
    block, *_, following = anatomy.of(model).blocks * 2
    done = [path for attention in block.attentions for path in attention.members]
    left, behind = list(block.ffns[0].members), list(following.ffns[0].members)
    plain, walk = BlockCalibration(batches), BlockCalibration(batches)
    for one in (plain, walk):
        one.enter(model, block.path)
    walk.settle(model, done, left)
    for _ in range(2):
        assert_same_inputs(model, left, plain, walk)
    for one in (plain, walk):
        one.enter(model, following.path)
    assert_same_inputs(model, behind, plain, walk)


def assert_same_inputs(
    model: PreTrainedModel, paths: list[str], one: BlockCalibration, other: BlockCalibration
) -> None:
    first, second = (input_moments(model, paths, each) for each in (one, other))
    for path in paths:
        assert torch.equal(first[path].total, second[path].total)
        assert first[path].count == second[path].count


@pytest.mark.parametrize(
    ("done", "left", "counted", "times"),
    [
        (["attention.self.query", "attention.output.dense"], ["intermediate.dense"], "attention", 1),
        (["attention.self.query"], ["attention.output.dense"], "attention", 3),
        (["intermediate.dense"], ["output.dense"], "intermediate", 3),
    ],
)
def test_which_parts_of_a_block_are_kept(done: list[str], left: list[str], counted: str, times: int) -> None:
    """Those with nothing left to compress in them whose output is no larger than their input; also on the way on."""
    model = models.tiny("bert")
    batches = random_batches(model, samples=4, max_length=12, batch_size=2)
    walk, block = BlockCalibration(batches), "encoder.layer.0"
    walk.enter(model, block)
    walk.settle(model, [f"{block}.{path}" for path in done], [f"{block}.{path}" for path in left])
    calls: list[str] = []
    inside = next(path for path in (*done, *left) if path.startswith(f"{counted}."))
    with hooked(model, {f"{block}.{inside}": lambda *_: calls.append(inside)}):
        for _ in range(2):
            input_moments(model, [f"{block}.output.dense"], walk)
        walk.enter(model, "encoder.layer.1")
    assert len(calls) == times * len(batches)
    assert not any("forward" in vars(module) for module in model.modules())
