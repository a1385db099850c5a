"""Training compressed models, stopping, and going on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch.utils.data import Dataset

from compresskit.checkpoint import resume
from compresskit.checkpoint.load import attach, load_model
from compresskit.checkpoint.manifest import NAME as MARKER
from compresskit.checkpoint.plainstate import read_state, write_state
from compresskit.checkpoint.resume import ResumableTrainer, newest_checkpoint, what_is_wrong
from compresskit.errors import ModelError, UsageError
from tests import models
from tests.checkpoint import edits
from tests.checkpoint.toys import ToyLowRank


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Random ids with a label that follows from them."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = models.inputs("bert", batch=1, length=8, seed=index)["input_ids"][0]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.sum() % models.LABELS}


class StopAt(hf.TrainerCallback):
    """Ends training after a step, as a killed process would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: hf.TrainerState, control: hf.TrainerControl, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def arguments(folder: Path, **changes: Any) -> hf.TrainingArguments:
    settings: dict[str, Any] = {
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 10,
        "logging_steps": 5,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return hf.TrainingArguments(output_dir=str(folder), **{**settings, **changes})


def student(name: str = "bert") -> hf.PreTrainedModel:
    """Low rank, shared layers, a replaced attention, and dropout that needs its random state."""
    model = models.tiny(name, task="classifier")
    edits.shared_layers(model)
    edits.low_rank(model)
    edits.window(model)
    for path, module in list(model.named_modules()):
        if path.endswith(("1.output.dense.up", "1.mlp.c_proj.up")):
            model.get_submodule(path.replace(".1.", ".2.")).weight = module.weight
    attach(model)
    return model


def trainer(model: hf.PreTrainedModel, folder: Path, stop: int | None = None, **changes: Any) -> ResumableTrainer:
    callbacks = [] if stop is None else [StopAt(stop)]
    return ResumableTrainer(model=model, args=arguments(folder, **changes), train_dataset=Rows(), callbacks=callbacks)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_stopped_and_resumed_is_as_never_stopped(name: str, tmp_path: Path) -> None:
    whole = student(name)
    first = {key: value.clone() for key, value in whole.state_dict().items()}
    trainer(whole, tmp_path / "whole").train()

    stopped = student(name)
    trainer(stopped, tmp_path / "parts", stop=10).train()
    assert newest_checkpoint(tmp_path / "parts").name == "checkpoint-10"
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    resumed = student(name)
    second = trainer(resumed, tmp_path / "parts")
    second.train(resume_from_checkpoint=True)

    assert second.state.global_step == 20
    states = [model.state_dict() for model in (whole, resumed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], first[key]) for key in first)
    files = [tmp_path / part / "checkpoint-20" / "model.safetensors" for part in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_training_checkpoint_is_a_checkpoint(tmp_path: Path) -> None:
    model = student()
    trainer(model, tmp_path, stop=5, save_steps=5).train()
    folder = tmp_path / "checkpoint-5"
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(folder)
    layers = loaded.bert.encoder.layer
    assert isinstance(layers[1].output.dense, ToyLowRank)
    assert layers[1].output.dense.up.weight is layers[2].output.dense.up.weight
    assert torch.equal(models.output(loaded, models.inputs("bert")), models.output(model.eval(), models.inputs("bert")))
    names = sorted(path.name for path in folder.iterdir())
    assert not [name for name in names if name.endswith((".pt", ".pth", ".bin", ".pkl"))]
    assert {MARKER, "optimizer.safetensors", "random.json", "scheduler.json", "training_args.json"} <= set(names)
    assert any("_guarded" in key for key in load_file(folder / "model.safetensors"))


def test_a_reloaded_model_trains_on(tmp_path: Path) -> None:
    model = student()
    model.save_pretrained(tmp_path / "start")
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "start")
    trainer(loaded, tmp_path / "run", max_steps=2, save_steps=2).train()
    again = load_model(tmp_path / "run" / "checkpoint-2")
    assert torch.equal(models.output(again, models.inputs("bert")), models.output(loaded.eval(), models.inputs("bert")))
    assert not torch.equal(models.output(again, models.inputs("bert")), models.output(model, models.inputs("bert")))


def test_the_stock_trainer_takes_them_too(tmp_path: Path) -> None:
    loaded = student()
    loaded.save_pretrained(tmp_path / "start")
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "start")
    settings = arguments(tmp_path / "run", max_steps=2, save_strategy="no")
    hf.Trainer(model=loaded, args=settings, train_dataset=Rows()).train()
    loaded.save_pretrained(tmp_path / "end")
    assert load_model(tmp_path / "end").bert.encoder.layer[0].output.dense.rank == 6


def damage(run: Path, how: str) -> None:
    newest = run / "checkpoint-4"
    if how == "marker":
        (newest / MARKER).unlink()
    elif how == "truncated":
        path = newest / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "flipped":
        path = newest / "optimizer.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    elif how == "garbage":
        (newest / MARKER).write_text("[1")
    else:
        (newest / "random.json").unlink()


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(student(), tmp_path / "run", max_steps=4, save_steps=2).train()
    for how in ("marker", "truncated", "flipped", "garbage", "lost"):
        copy = tmp_path / how
        import shutil

        shutil.copytree(tmp_path / "run", copy)
        damage(copy, how)
        caplog.clear()
        assert newest_checkpoint(copy).name == "checkpoint-2"
        assert "checkpoint-4 is passed over" in caplog.text
        assert what_is_wrong(copy / "checkpoint-4")
    with pytest.raises(ModelError) as caught:
        trainer(student(), tmp_path / "marker").train(resume_from_checkpoint=str(tmp_path / "marker" / "checkpoint-4"))
    assert caught.value.code == "CK-L050"
    with pytest.raises(ModelError, match="no whole training checkpoint"):
        trainer(student(), tmp_path / "empty").train(resume_from_checkpoint=True)


def test_another_model_is_refused(tmp_path: Path) -> None:
    trainer(student(), tmp_path, max_steps=2, save_steps=2).train()
    other = models.tiny("bert", task="classifier")
    edits.uneven_widths(other)
    with pytest.raises(ModelError) as caught:
        trainer(other, tmp_path).train(resume_from_checkpoint=True)
    assert caught.value.code == "CK-L053"


def test_old_checkpoints_go_and_the_best_comes_back(tmp_path: Path) -> None:
    model = student()
    args = arguments(
        tmp_path, max_steps=8, save_steps=2, eval_steps=2, eval_strategy="steps", save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=0.3,
    )  # fmt: skip
    run = ResumableTrainer(model=model, args=args, train_dataset=Rows(), eval_dataset=Rows())
    (tmp_path / "checkpoint-2.ck-tmp-0123456789ab").mkdir(parents=True)
    run.train()
    left = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    best = Path(str(run.state.best_model_checkpoint))
    assert best.name in left
    assert "checkpoint-8" in left
    assert len(left) <= 3
    saved = load_model(best)
    assert torch.equal(models.output(model.eval(), models.inputs("bert")), models.output(saved, models.inputs("bert")))


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "write_state", full)
    with pytest.raises(OSError, match="No space"):
        trainer(student(), tmp_path, max_steps=2, save_steps=2).train()
    assert list(tmp_path.iterdir()) == []


def test_set_ups_that_arent_supported(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        ResumableTrainer(model=torch.nn.Linear(2, 2), args=arguments(tmp_path), train_dataset=Rows())
    assert caught.value.code == "CK-L052"


def test_states_of_all_sorts(tmp_path: Path) -> None:
    state = {
        "numbers": [1, 2.5, float("inf"), True, None, 0.1 + 0.2],
        3: ("a", (torch.arange(3), torch.tensor(1.5))),
        "array": np.arange(4, dtype=np.uint32),
        "scalar": np.float64(0.1),
        "__kind__": {"__kind__": "tensor"},
        "empty": {},
        "low": torch.ones(2, dtype=torch.bfloat16),
    }
    write_state(state, tmp_path / "state")
    found = read_state(tmp_path / "state")
    assert list(found) == list(state)
    assert found["numbers"] == state["numbers"]
    assert isinstance(found["numbers"][3], bool)
    assert torch.equal(found[3][1][0], torch.arange(3))
    assert isinstance(found[3], tuple)
    assert found["array"].dtype == np.uint32
    assert found["__kind__"] == {"__kind__": "tensor"}
    assert found["low"].dtype == torch.bfloat16
    json.loads((tmp_path / "state.json").read_text())


def test_states_that_cant_be_plain(tmp_path: Path) -> None:
    for bad in ({"optimizer": {"f": print}}, {"x": [{1.5: 2}]}, {"s": {1, 2}}):
        with pytest.raises(ModelError) as caught:
            write_state(bad, tmp_path / "state")
        assert caught.value.code == "CK-L051"
        assert caught.value.where
    (tmp_path / "broken.json").write_text('{"__kind__": "call"}')
    write_state({}, tmp_path / "other")
    (tmp_path / "other.safetensors").rename(tmp_path / "broken.safetensors")
    with pytest.raises(ModelError) as caught:
        read_state(tmp_path / "broken")
    assert caught.value.code == "CK-L050"


def test_random_states_come_back(tmp_path: Path) -> None:
    run = trainer(student(), tmp_path)
    tmp_path.mkdir(exist_ok=True)
    run._save_rng_state(str(tmp_path))
    drawn = random.random(), np.random.rand(), torch.rand(3)
    run._load_rng_state(str(tmp_path))
    again = random.random(), np.random.rand(), torch.rand(3)
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])
