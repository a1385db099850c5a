"""Every method of quantization on the gates of LSTMs and GRUs."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from compresskit import registry
from compresskit.calibrate.moments import input_moments
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core import surgery
from compresskit.core.context import Context
from compresskit.core.targets import candidates, resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError
from compresskit.export import export_onnx
from compresskit.methods.quantization.gptq import Gptq
from compresskit.methods.quantization.int8 import Int8
from compresskit.methods.quantization.rtn import Rtn
from compresskit.models.recurrent import RecurrentForSequenceClassification
from compresskit.models.relation import BiLSTMForRelationExtraction
from compresskit.models.settings import BiLSTMConfig, RecurrentConfig
from compresskit.nn.recurrent import Recurrent
from compresskit.pipeline.ledger import size_of
from tests.export.conftest import run
from tests.test_recurrent_models import batch, build

OPTIONS: dict[str, dict[str, Any]] = {
    "quantization.int8": {},
    "quantization.rtn": {"bits": 4, "group": 8},
    "quantization.hqq": {"bits": 3, "group": 8},
    "quantization.nf4": {"group": 8},
    "quantization.codebook": {"bits": 3, "targets": ("rnn",)},
    "quantization.binary": {},
    "quantization.ternary": {},
    "quantization.gptq": {"bits": 4, "group": 8},
    "quantization.awq": {"bits": 4, "group": 8},
    "quantization.mixed": {"bits": 6, "group": 8, "targets": ("rnn",)},
    "decomposition.svd": {"rank": 3},
}
GATES = [
    f"rnn.weight_{source}_l{layer}{direction}"
    for layer in range(2)
    for direction in ("", "_reverse")
    for source in ("ih", "hh")
]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**batch()).logits
    return found


@cache
def original(cell: str) -> PreTrainedModel:
    return build(cell, hidden=16, word_size=24)


def compressed(cell: str, name: str, **options: Any) -> tuple[PreTrainedModel, Context]:
    model, context = copy.deepcopy(original(cell)), Context(calibration=[batch()])
    method = registry.method(name).model_validate(options)
    method.apply(model, resolve(model, method).sites, context)
    surgery.sync_config(model)
    return model, context


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", OPTIONS)
def test_compressed_saved_and_loaded(name: str, cell: str, tmp_path: Path) -> None:
    plain = original(cell)
    method = registry.method(name).model_validate(OPTIONS[name])
    sites = resolve(plain, method).sites
    assert [site.path for site in sites] == GATES
    predicted = method.predicted_saving(plain, sites)
    model, context = compressed(cell, name, **OPTIONS[name])
    assert type(plain.rnn) is not Recurrent
    assert type(model.rnn) is Recurrent
    assert set(context.details) >= set(GATES)
    saved = size_of(plain).bytes - size_of(model).bytes
    assert saved > 0
    assert predicted is None or (saved >= predicted if name.endswith("mixed") else saved == predicted)
    if name != "decomposition.svd":
        assert size_of(model).parameters == size_of(plain).parameters
    difference = float((logits(model) - logits(plain)).abs().max())
    assert 0 < difference < 0.1
    again = load_model(save_checkpoint(model, tmp_path / "out", source=None).path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("name", ["quantization.static_int8", "quantization.smoothquant"])
def test_refused_where_inputs_would_be_scaled(name: str) -> None:
    with pytest.raises(RecipeError, match=r"gates of an LSTM or GRU.*quantization\.int8"):
        resolve(original("lstm"), registry.method(name)())


def test_a_second_step_does_what_the_first_left() -> None:
    model, _ = compressed("lstm", "quantization.rtn", bits=4, group=8, targets=("rnn.weight_hh_*",))
    left = [site.path for site in candidates(model, frozenset({"matrix"})) if site.path.startswith("rnn")]
    assert left == [path for path in GATES if "_ih_" in path]
    Int8().apply(model, resolve(model, Int8()).sites, Context())
    assert {type(layer).__name__ for layer in model.rnn.matrices} == {"PackedLinear", "Int8Linear"}


def test_gates_are_taken_by_default_and_the_head_is_not() -> None:
    model, _ = compressed("gru", "quantization.int8")
    assert type(model.classifier) is nn.Linear


def test_calibration_sees_the_states_and_not_the_padding() -> None:
    """GPTQ errs less than rounding in what the gates compute."""
    model = copy.deepcopy(original("lstm"))
    surgery.open_parts(model, GATES)
    moments = input_moments(model, GATES, [batch()])
    assert {found.count for found in moments.values()} == {int(batch()["attention_mask"].sum())}
    assert moments[GATES[0]] is moments[GATES[2]], "both directions read the words"
    errors = []
    for method in (Gptq(bits=3, group=8), Rtn(bits=3, group=8)):
        copied = copy.deepcopy(original("lstm"))
        method.apply(copied, resolve(copied, method).sites, Context(calibration=[batch()]))
        change = (copied.get_submodule(GATES[0]).weight - view(original("lstm"), GATES[0]).weight).double()
        gram = moments[GATES[0]].gram
        assert gram is not None
        errors.append(float((change @ gram * change).sum()))
    assert errors[0] < errors[1]


def test_shared_lstms_stay_shared() -> None:
    model = copy.deepcopy(original("lstm"))
    model.other = copy.deepcopy(model.rnn)
    surgery.share_module(model, "rnn", "other")
    sites = resolve(model, Rtn(group=8)).sites
    assert [site.path for site in sites] == GATES
    assert sites[0].members == ("other.weight_ih_l0",)
    count = size_of(model).parameters
    Rtn(group=8).apply(model, sites, Context())
    assert size_of(model).parameters == count
    assert model.other.weight_ih_l0.codes is model.rnn.weight_ih_l0.codes


def test_relation_extraction_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BiLSTMForRelationExtraction(BiLSTMConfig(vocab_size=50, word_size=12, hidden=8, num_labels=4)).eval()
    Rtn(bits=8, per="channel").apply(model, resolve(model, Rtn(bits=8, per="channel")).sites, Context())
    report = export_onnx(model, tmp_path / "model.onnx", profile="portable")
    assert report.held_to == "float"
    assert report.graphs["model"].audit.operators["LSTM"] == 1


@pytest.mark.timeout(120)
def test_a_classifier_of_30k_words_in_a_quarter(tmp_path: Path) -> None:
    """2 x 256, both directions, random weights: int8 file at most .27 of fp32, outputs within 1e-3; in ONNX too."""
    torch.manual_seed(0)
    plain = RecurrentForSequenceClassification(RecurrentConfig(num_labels=4)).eval()
    assert (plain.config.layers, plain.config.hidden, plain.config.vocab_size) == (2, 256, 30_000)
    ids = torch.randint(5, 30_000, (8, 48))
    mask = (torch.arange(48) < torch.tensor([48, 6, 30, 48, 1, 17, 40, 25])[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    model = copy.deepcopy(plain)
    for name, options in (("quantization.int8", {}), ("quantization.embedding", {"bits": 8})):
        method = registry.method(name).model_validate(options)
        method.apply(model, resolve(model, method).sites, Context())
    folders = [
        save_checkpoint(plain, tmp_path / "float", source=None),
        save_checkpoint(model, tmp_path / "int8", source=None),
    ]
    sizes = [sum(file.stat().st_size for file in saved.path.glob("*.safetensors")) for saved in folders]
    assert sizes[1] <= 0.27 * sizes[0]
    with torch.no_grad():
        expected = plain(**inputs).logits
        assert float((model(**inputs).logits - expected).abs().max()) <= 1e-3
    report = export_onnx(folders[1].path, tmp_path / "model.onnx")
    assert report.graphs["model"].audit.operators["DynamicQuantizeLSTM"] == 2
    assert report.bytes <= 0.27 * sizes[0]
    assert float((torch.from_numpy(run(report.path, inputs)["logits"]) - expected).abs().max()) <= 1e-3
