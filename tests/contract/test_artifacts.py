"""Ten artifacts: reloaded, edited, refused without the import, opened in other classes, fine-tuned and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import compresskit  # noqa: F401  (lets transformers load the artifacts)
from compresskit.checkpoint.layout import read_layout
from compresskit.checkpoint.resume import ResumableTrainer
from compresskit.checkpoint.save import save_checkpoint
from tests import models
from tests.contract.artifacts import ARTIFACTS, make

CASES: list[tuple[str, str, models.Task]] = [(artifact, "bert", "base") for artifact in ARTIFACTS]
CASES += [(artifact, "gpt2", "lm") for artifact in ARTIFACTS]
NAMES = [f"{artifact}-{name}" for artifact, name, _ in CASES]

_RELOAD = """
import json, sys, torch
torch.set_num_threads(1)
if sys.argv[2] == "with": import compresskit
import transformers as hf
from safetensors.torch import load_file, save_file
outcomes = {}
for case in json.load(open(sys.argv[1])):
    try:
        model = getattr(hf, case["auto"]).from_pretrained(case["folder"]).eval()
        with torch.no_grad(): output = model(**load_file(case["inputs"]))
        save_file({"output": output[0].contiguous()}, case["result"])
        outcomes[case["name"]] = "loaded"
    except Exception as error:
        outcomes[case["name"]] = type(error).__name__
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[hf.PreTrainedModel, Path]]:
    root = tmp_path_factory.mktemp("artifacts")
    result = {}
    for (artifact, family, task), name in zip(CASES, NAMES, strict=True):
        model = make(artifact, family, task, root / "work")
        result[name] = (model, save_checkpoint(model, root / name).path)
    return result


def _batch(name: str) -> dict[str, torch.Tensor]:
    return models.inputs("gpt2" if name.endswith("gpt2") else "bert", padded=True)


def _auto(name: str) -> str:
    return "AutoModelForCausalLM" if name.endswith("gpt2") else "AutoModel"


def _in_fresh_process(made: dict[str, Any], work: Path, how: str) -> dict[str, str]:
    cases = []
    for name, (_, folder) in made.items():
        inputs = work / f"{name}-in.safetensors"
        save_file(_batch(name), inputs)
        cases.append(
            {
                "name": name,
                "folder": str(folder),
                "auto": _auto(name),
                "inputs": str(inputs),
                "result": str(work / name),
            }
        )
    (work / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-c", _RELOAD, str(work / "cases.json"), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    outcomes: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


def test_a_fresh_process_gives_the_same_bits(made: dict[str, Any], tmp_path: Path) -> None:
    outcomes = _in_fresh_process(made, tmp_path, "with")
    assert outcomes == dict.fromkeys(NAMES, "loaded")
    for name, (model, _) in made.items():
        live = models.output(model, _batch(name))
        assert torch.equal(load_file(tmp_path / name)["output"], live), name


def test_without_the_import_a_compressed_one_fails_and_a_stock_one_loads(made: dict[str, Any], tmp_path: Path) -> None:
    outcomes = _in_fresh_process(made, tmp_path, "without")
    for name, (model, _) in made.items():
        if read_layout(model):
            assert outcomes[name] != "loaded", f"{name} loads as garbage"
        else:
            assert outcomes[name] == "loaded", f"{name} is a stock checkpoint"


@pytest.mark.parametrize("name", NAMES)
def test_saved_again_and_edited_by_hand(made: dict[str, Any], name: str, tmp_path: Path) -> None:
    model, folder = made[name]
    batch, auto = _batch(name), getattr(hf, _auto(name))
    again = auto.from_pretrained(folder).eval()
    again.save_pretrained(tmp_path / "again")
    third = auto.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(models.output(third, batch), models.output(model, batch))
    norm = next(value for key, value in third.named_parameters() if value.dim() == 1 and value.is_floating_point())
    with torch.no_grad():
        norm.add_(0.25)
    third.save_pretrained(tmp_path / "edited")
    edited = auto.from_pretrained(tmp_path / "edited").eval()
    assert torch.equal(models.output(edited, batch), models.output(third, batch))
    assert not torch.equal(models.output(edited, batch), models.output(model, batch))


@pytest.mark.parametrize("name", NAMES)
def test_opens_in_the_other_classes(made: dict[str, Any], name: str) -> None:
    model, folder = made[name]
    gpt2 = name.endswith("gpt2")
    encoder = ["BertForSequenceClassification", "BertForMaskedLM"]
    classes = ["GPT2Model", "GPT2ForSequenceClassification"] if gpt2 else encoder
    base = model.base_model
    batch = _batch(name)
    with torch.no_grad():
        expected = base(**batch).last_hidden_state
    for cls in classes:
        opened = getattr(hf, cls).from_pretrained(folder).eval()
        with torch.no_grad():
            found = opened.base_model(**batch).last_hidden_state
        assert torch.equal(found, expected), cls


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, causal: bool) -> None:
        batch = models.inputs("gpt2" if causal else "bert", batch=24, length=8)
        self.rows = [{key: value[row] for key, value in batch.items()} for row in range(24)]
        for index, row in enumerate(self.rows):
            row["labels"] = row["input_ids"].clone() if causal else torch.tensor(index % 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def _train(folder: Path, causal: bool, run: Path, steps: int, resume: bool) -> hf.PreTrainedModel:
    auto = hf.AutoModelForCausalLM if causal else hf.AutoModelForSequenceClassification
    torch.manual_seed(0)
    model = auto.from_pretrained(folder, **({} if causal else {"num_labels": 3}))
    arguments = hf.TrainingArguments(
        output_dir=str(run), max_steps=20, per_device_train_batch_size=4, save_steps=10, save_strategy="steps",
        report_to=[], learning_rate=1e-3, seed=0, use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    callbacks = [] if steps == 20 else [_StopAt(steps)]
    trainer = ResumableTrainer(model=model, args=arguments, train_dataset=_Rows(causal), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume or None)
    return model.eval()


class _StopAt(hf.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("name", ["prune-svd-int8-bert", "sharing-gpt2", "window-int8-bert", "quantization-gpt2"])
def test_fine_tunes_stops_and_resumes(made: dict[str, Any], name: str, tmp_path: Path) -> None:
    _, folder = made[name]
    causal = name.endswith("gpt2")
    whole = _train(folder, causal, tmp_path / "whole", 20, resume=False)
    _train(folder, causal, tmp_path / "parts", 10, resume=False)
    resumed = _train(folder, causal, tmp_path / "parts", 20, resume=True)
    batch = _batch(name)
    assert torch.equal(models.output(whole, batch), models.output(resumed, batch))
    original = (hf.AutoModelForCausalLM if causal else hf.AutoModel).from_pretrained(folder)
    trained = dict(whole.base_model.named_parameters())
    moved = [key for key, value in original.base_model.named_parameters() if not torch.equal(value, trained[key])]
    assert moved, "training changed something"
