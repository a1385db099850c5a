"""The conformance suite's own vocabulary: options that make every method do something, or nothing, on tiny models."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compresskit import registry
from compresskit.core import surgery
from compresskit.core.compressor import Compressor
from compresskit.core.context import Batch, Context
from compresskit.core.targets import Resolution, resolve
from compresskit.errors import RecipeError
from compresskit.recipe import TrainingData
from tests import models

ARCHITECTURES = ("bert", "roberta", "distilbert", "albert", "gpt2", "llama", "qwen2", "qwen3", "t5", "t5encoder")

# Architectures with other holders of weights, and the methods that stand for all on them.
MORE = models.MORE
ON_MORE = (
    "pruning.experts",
    "pruning.ffn",
    "pruning.heads",
    "pruning.layers",
    "quantization.int8",
    "quantization.nf4",
    "quantization.gptq",
    "quantization.static_int8",
    "quantization.embedding",
    "decomposition.svd",
)

# Options with which each method must change a tiny model. A new method joins the suite by a line here.
ACTIVE: dict[str, dict[str, Any]] = {
    "pruning.experts": {"keep": 0.67},
    "pruning.ffn": {"keep": 0.5},
    "pruning.heads": {"keep": 0.5},
    "pruning.layers": {"keep": 0.67},
    "quantization.int8": {},
    "quantization.static_int8": {},
    "quantization.smoothquant": {},
    "quantization.embedding": {"bits": 8},
    "quantization.rtn": {"bits": 4},
    "quantization.hqq": {"bits": 4},
    "quantization.gptq": {"bits": 4},
    "quantization.awq": {"bits": 4},
    "quantization.nf4": {},
    "quantization.mixed": {"bits": 5},
    "quantization.binary": {},
    "quantization.ternary": {},
    "quantization.qat": {"bits": 4, "steps": 2, "batch": 4},
    "quantization.bnb_nf4": {},
    "quantization.llm_int8": {},
    "quantization.codebook": {"bits": 4},
    "quantization.residual": {"bits": 3, "rank": 4},
    "quantization.kv_cache": {"bits": 4, "group": 4, "residual": 4},
    "quantization.rotation": {},
    "quantization.fp8": {},
    "distillation.logits": {"steps": 2, "batch": 4},
    "distillation.embeddings": {"steps": 2, "batch": 4},
    "distillation.midtd": {"epochs": 1},
    "distillation.hints": {"steps": 2, "batch": 4},
    "distillation.attention": {"steps": 2, "batch": 4},
    "distillation.minilm": {"steps": 2, "batch": 4},
    "distillation.tinybert": {"steps": 2, "batch": 4},
    "distillation.reverse_kl": {"steps": 2, "batch": 4},
    "distillation.skew_kl": {"steps": 2, "batch": 4},
    "distillation.gkd": {"steps": 2, "batch": 4, "share": 1.0, "prompt": 2, "new_tokens": 3},
    "distillation.sequence": {"steps": 2, "batch": 4, "prompt": 2, "new_tokens": 3},
    "distillation.uld": {"steps": 2, "batch": 4},
    "distillation.multi_teacher": {"steps": 2, "batch": 4},
    "distillation.assistant": {"steps": 2, "batch": 4},
    "distillation.theseus": {"steps": 2, "batch": 4},
    "distillation.layer_init": {"layers": 2, "ffn": 0.5},
    "sharing.layers": {"groups": [[1, 2]]},
    "decomposition.svd": {"ratio": 0.5},
    "attention.window": {"window": 3},
    "attention.linear": {},
}

# Options that ask for nothing: outputs must stay within 1e-5. Methods that have no such option are named with None.
NOTHING: dict[str, dict[str, Any] | None] = {
    "pruning.experts": {"keep": 1.0},
    "pruning.ffn": {"keep": 1.0},
    "pruning.heads": {"keep": 1.0},
    "pruning.layers": {"keep": 1.0},
    "quantization.int8": None,
    "quantization.static_int8": None,
    "quantization.smoothquant": None,
    "quantization.embedding": None,
    "quantization.rtn": {"bits": 16},
    "quantization.hqq": {"bits": 16},
    "quantization.gptq": {"bits": 16},
    "quantization.awq": {"bits": 16},
    "quantization.nf4": None,
    "quantization.mixed": {"bits": 16},
    "quantization.binary": None,
    "quantization.ternary": None,
    "quantization.qat": {"bits": 16},
    "quantization.bnb_nf4": None,
    "quantization.llm_int8": None,
    "quantization.codebook": {"bits": 16},
    "quantization.residual": {"bits": 16},
    "quantization.kv_cache": {"bits": 16},
    "quantization.rotation": None,
    "quantization.fp8": None,
    "distillation.logits": None,
    "distillation.embeddings": None,
    "distillation.midtd": None,
    "distillation.hints": None,
    "distillation.attention": None,
    "distillation.minilm": None,
    "distillation.tinybert": None,
    "distillation.reverse_kl": None,
    "distillation.skew_kl": None,
    "distillation.gkd": None,
    "distillation.sequence": None,
    "distillation.uld": None,
    "distillation.multi_teacher": None,
    "distillation.assistant": None,
    "distillation.theseus": None,
    "distillation.layer_init": None,
    "sharing.layers": None,
    "decomposition.svd": {"ratio": 1.0},
    "attention.window": {"window": 512},
    "attention.linear": None,
}


@dataclass(frozen=True)
class Outcome:
    """A method on a model: the model after it, or the sentence with which it was refused."""

    model: PreTrainedModel
    sites: Resolution | None
    refused: str | None
    warnings: list[str]


def head_of(name: str) -> models.Task:
    """The class to test an architecture with: decoders and T5 with their language head, encoders as they are."""
    return "lm" if name in (*models.DECODERS, "t5", "mixtral", "switch") else "base"


def model_of(name: str) -> PreTrainedModel:
    """The tiny model of an architecture."""
    return models.tiny(name, task=head_of(name))


def batches_of(name: str, count: int = 4) -> list[Batch]:
    """Padded calibration batches."""
    return [models.inputs(name, batch=4, length=12, padded=True, seed=seed) for seed in range(count)]


TEXTS = [
    "the small cat sat on the mat",
    "a good book",
    "we like it not",
    "the big dog runs fast in the film",
    "bad mat",
]


def training_data(texts: list[str], folder: Path) -> TrainingData:
    """A file of texts, for methods that train on what follows in them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TrainingData(train=str(path))


def context_for(name: str, original: PreTrainedModel, work: Path, warnings: list[str]) -> Context:
    """A context as the pipeline makes it."""
    return Context(
        data=training_data(TEXTS, work),
        calibration=batches_of(name),
        texts=TEXTS * 4,
        tokenizer=models.tokenizer(),
        teacher=lambda: copy.deepcopy(original).eval(),
        work=work,
        warn=warnings.append,
    )


def need_package(method_name: str) -> None:
    """Skip the test where the optional package that the method needs isn't installed."""
    package = registry.method(method_name).package
    if package:
        pytest.importorskip(package, reason=f"{method_name} needs {package}, which isn't installed")


def run(method_name: str, options: dict[str, Any], name: str, work: Path) -> Outcome:
    """Apply a method to the tiny model of an architecture, or learn why not."""
    original = model_of(name)
    model = copy.deepcopy(original)
    method = registry.method(method_name).model_validate(options)
    return apply_method(method, model, original, name, work)


def apply_method(
    method: Compressor,
    model: PreTrainedModel,
    original: PreTrainedModel,
    name: str,
    work: Path,
    context: Context | None = None,
) -> Outcome:
    """Resolve, apply, sync: a step without the pipeline's checks; by default in a tiny model's context."""
    warnings: list[str] = []
    try:
        found = resolve(model, method)
    except RecipeError as error:
        if error.code != "CK-T014":
            raise
        return Outcome(model, None, error.why, warnings)
    torch.manual_seed(0)
    returned = method.apply(model, found.sites, context or context_for(name, original, work, warnings))
    model = (returned if returned is not None else model).eval()
    surgery.sync_config(model)
    return Outcome(model, found, None, warnings)
