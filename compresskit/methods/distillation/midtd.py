"""Multi-instance dynamic temperature distillation: targets mixed within bags, a temperature for each instance.

For classifiers trained on noisy labels, above all relation extraction under distant supervision; the bag is a pair of
entities, or the rows with one value in a column (augmentations, near duplicates), or the row alone. Token classifiers
have an instance for each word (the bag is its mention), language models one for each next word (a bag of one). Not for
regression.
Paper: Li, Yang, Li and Su 2022, "MiDTD", ACM TOIS 40(4), doi 10.1145/3503917. The equations are those of the released
code; each option names the symbol of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.outputs import output_kind, outputs_of
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.errors import DataError
from compresskit.methods.distillation._labelled import (
    Rows,
    read_rows,
    require_all_classes,
)
from compresskit.methods.distillation._language import no_writer
from compresskit.methods.distillation._positions import likelihood_score, span_score, tagged_rows, text_rows
from compresskit.methods.distillation._shared import nothing_trainable
from compresskit.numerics.fusion import Space, Weights, fuse_targets
from compresskit.numerics.temperatures import entropy_spread, temperatures
from compresskit.registry import register
from compresskit.train.agreement import class_names, require_same_labels, require_same_outputs
from compresskit.train.labelled import FitOptions, Fitted, fit, logits_of
from compresskit.train.logits_cache import cached_logits, cached_positions
from compresskit.train.policies import POLICIES, Band, BySoftness, Exponential, Fixed, Policy
from compresskit.train.positions import run_positions, targets_at

__all__ = ["PRESETS", "MiDTD", "fuse_targets", "temperatures"]

PRESETS: dict[str, dict[str, Any]] = {
    # The released settings that run: the flag says k = 300, but the program overwrites it with rho.
    "paper": {"policy": "exp", "mu_teacher": 0.7, "mu_student": 0.45, "k": 0.5, "rho": 0.5, "alpha": 0.8},
    # What the released flags and file names say.
    "nominal": {"policy": "exp", "mu_teacher": 0.7, "mu_student": -0.45, "k": 300.0, "rho": 0.5, "alpha": 0.8},
    # Ours: a soft teacher (of noisy labels) has to be hardened, which `exp` can't; a sharp one is softened.
    "default": {"policy": "auto", "mu_teacher": 0.7, "mu_student": 0.0, "k": "auto", "rho": 0.5, "alpha": 0.8},
}


@register
@final
class MiDTD(Compressor):
    """Train a classifier on labels and on a teacher's logits, mixed in bags, each with a temperature of its own.

    ```yaml
    teacher: runs/teacher
    data: {train: train.jsonl, dev: dev.jsonl}
    steps:
      - distillation.midtd: {preset: default, epochs: 10}
    ```
    """

    family: ClassVar[str] = "distillation"
    name: ClassVar[str] = "midtd"
    paper: ClassVar[str] = "Li, Yang, Li and Su 2022, ACM TOIS 40(4), doi 10.1145/3503917"
    sites: ClassVar[frozenset[str]] = frozenset({"model"})
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "labels", "training"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset()

    preset: Literal["default", "paper", "nominal"] = Field(
        "default", description="settings of those below that aren't given: ours, the released code's, or its flags'"
    )
    rho: float | None = Field(None, ge=0, le=1, description="the paper's ρ: share of the bag in a target")
    weights: Weights = Field(
        "mean", description="how rows of a bag count: equally (the paper), confident ones more, ..."
    )
    space: Space = Field("logit", description="where a bag is averaged: logits (the paper), or probabilities")
    key: Literal["group", "group+label"] = Field(
        "group", description="what makes a bag: the group's column, or with it the label (the released code)"
    )
    policy: Literal["auto", "exp", "range", "fixed", "standardized", "dtkd", "annealed", "curriculum"] | None = Field(
        None, description="rule of the temperatures; auto: range for soft teachers, exp for sharp ones"
    )
    mu_teacher: float | None = Field(None, gt=-1, le=100, description="the paper's μ1: T_t = 1 + μ1 exp(-k H)")
    mu_student: float | None = Field(None, gt=-1, le=100, description="the paper's μ2: T_s = 1 + μ2 exp(-k H)")
    k: float | Literal["auto"] | None = Field(None, description="the paper's k; auto: ln 2 / median of H")
    low: float = Field(0.05, ge=0, le=1, description="range: least entropy of a target, as a share of ln C")
    high: float = Field(0.3, ge=0, le=1, description="range: largest entropy of a target, as a share of ln C")
    temperature: float = Field(1.0, gt=0, le=100, description="fixed: T on both sides")
    softness: float = Field(0.5, ge=0, le=1, description="auto: median of H / ln C above which a teacher is soft")
    alpha: float | None = Field(None, ge=0, le=1, description="the paper's α: weight of the soft term")
    squared: bool = Field(False, description="scale the soft term by T_t · T_s (Hinton's T²); the paper doesn't")
    generations: int = Field(1, ge=1, le=10, description="how often a trained student teaches the next (the paper: 1)")
    epochs: int = Field(10, ge=1, le=1000, description="passes over the rows; the best one on `dev` is kept")
    lr: float = Field(2e-3, gt=0, le=1, description="learning rate of Adam")
    batch: int = Field(64, ge=1, le=65_536, description="rows that a process takes at once")
    accumulation: int = Field(1, ge=1, le=65_536, description="batches whose gradients are added up for a step")
    patience: int | None = Field(
        None, ge=1, le=1000, description="epochs without a better score on `dev` after which training stops"
    )
    save_every: int = Field(250, ge=1, le=10_000_000, description="steps between savings, from which --resume goes on")
    bf16: bool = Field(
        False, description="compute products in bfloat16, faster where the processor has it; weights stay float32"
    )
    max_length: int = Field(128, ge=2, le=131_072, description="tokens a row is cut to")
    top_k: int = Field(
        64, ge=1, le=1_000_000, description="language models: words kept of each distribution, the rest as one"
    )

    @model_validator(mode="after")
    def _band_in_order(self) -> MiDTD:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        name, kind = type(model).__name__, output_kind(model)
        if kind == "embedding":
            return f"{name} has no head; midtd needs class labels and class logits"
        if kind == "language":
            return (
                no_writer(model) if not model.config.is_encoder_decoder else f"{name} has two inputs; midtd takes one"
            )
        if getattr(model.config, "problem_type", None) == "regression" or int(model.config.num_labels or 0) < 2:
            return f"{name} is a regression: a single number has no entropy and no temperature; use another loss"
        if name.endswith("ForQuestionAnswering"):
            return f"{name} gives logits for places in a text; midtd takes labels of rows, of words, or next words"
        return nothing_trainable(model)

    def setting(self, name: str) -> Any:
        """The option ``name``, or the preset's where it isn't given."""
        given = getattr(self, name)
        return PRESETS[self.preset][name] if given is None else given

    def temperature_policy(self) -> Policy:
        """The policy that the options name."""
        exponential = Exponential(self.setting("mu_teacher"), self.setting("mu_student"), self.setting("k"))
        band = Band(self.low, self.high)
        name = self.setting("policy")
        special: dict[str, Policy] = {
            "exp": exponential,
            "range": band,
            "auto": BySoftness(self.softness, band, exponential),
            "fixed": Fixed(self.temperature),
        }
        return special[name] if name in special else POLICIES[name]()

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if context.data is None:
            raise DataError(
                "CK-D030", "midtd trains on labels, and there is no `data`", fix="add `data: {train: FILE}`"
            )
        train = self._read(context.data.train, model, context)
        dev = self._read(context.data.dev, model, context) if context.data.dev is not None else None
        if train.data.positions is None:
            require_all_classes(train.data.labels, class_names(model), context.data.train)
        train, logits = self._teach(model, train, context)
        start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        notes = []
        for generation in range(self.generations):
            if generation:
                train, logits = self._outputs(model, train, None)
                model.load_state_dict(start)
            notes.append(self._generation(model, train, dev, logits, context, generation))
        note = {"generations": notes, "rows": len(train.data.rows), "instances": len(train.data.labels)}
        context.details.update({sites[0].path or "model": note})

    def _read(self, path: str, model: PreTrainedModel, context: Context) -> Rows:
        if is_tagger(model):
            return tagged_rows(path, model, context.tokenizer, self.max_length)
        read = read_rows if output_kind(model) == "classification" else text_rows
        return read(path, context.data, model, context.tokenizer, self.max_length, context.warn)

    def _teach(self, model: PreTrainedModel, train: Rows, context: Context) -> tuple[Rows, Tensor]:
        """The rows, perhaps of some words only, and the teacher's logits; it is let go afterwards."""
        if context.teacher is None:
            raise DataError("CK-D025", "there is no teacher to learn from", fix="name one under `teacher:`")
        teacher = context.teacher().eval()
        if output_kind(model) == "classification":
            require_same_labels(model, teacher)
        else:
            batch = train.data.collate(train.data.rows[:1])
            require_same_outputs(model, teacher, outputs_of(model, batch), outputs_of(teacher, batch))
        return self._outputs(teacher, train, _scratch(context))

    def _outputs(self, teacher: PreTrainedModel, train: Rows, folder: Path | None) -> tuple[Rows, Tensor]:
        data = train.data
        if data.positions is None:
            if folder is None:
                return train, logits_of(teacher, data.rows, data.collate)
            return train, cached_logits(teacher, data.rows, data.collate, folder)
        top_k = self.top_k if output_kind(teacher) == "language" else None
        if folder is None:
            parts = run_positions(teacher, data.rows, data.collate, data.positions, data.length)
            found = targets_at(parts, len(data.labels), top_k)
            logits, words = found["logits"], found.get("words")
        else:
            logits, words = cached_positions(teacher, data, data.positions, folder, top_k)
        return replace(train, data=replace(data, positions=replace(data.positions, words=words))), logits

    def _generation(
        self,
        model: PreTrainedModel,
        train: Rows,
        dev: Rows | None,
        logits: Tensor,
        context: Context,
        number: int,
    ) -> dict[str, Any]:
        labels = train.data.labels
        keys: Sequence[Any] | None = train.groups or None
        if keys is not None and self.key == "group+label":
            keys = list(zip(keys, labels.tolist(), strict=True))
        targets = fuse_targets(logits, keys, self.setting("rho"), self.weights, self.space, labels=labels)
        policy = self.temperature_policy().prepare(targets)
        options = FitOptions(
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            accumulation=self.accumulation,
            patience=self.patience,
            bf16=self.bf16,
            save_every=self.save_every,
            alpha=self.setting("alpha"),
            squared=self.squared,
            seed=context.seed + number,
        )
        score = None if dev is None else _score(dev, model)
        with torch.enable_grad():
            done = fit(
                model,
                train.data,
                options,
                targets=targets,
                policy=policy,
                score=score,
                progress=context.progress,
                warn=context.warn,
                folder=_scratch(context),
            )
        with torch.no_grad():
            teacher, _ = policy(targets, targets)
        return _note(done, policy, entropy_spread(targets, teacher))


def _scratch(context: Context) -> Path | None:
    """Where logits and training are kept; nowhere for a run without an output."""
    return None if context.work == Path() else context.work / "midtd"


def is_tagger(model: PreTrainedModel) -> bool:
    """Whether the model labels words."""
    return type(model).__name__.endswith("ForTokenClassification")


def _score(dev: Rows, model: PreTrainedModel) -> Callable[[Any], float]:
    """Accuracy, F1 of spans, or log-likelihood."""
    if dev.data.positions is None:
        return _accuracy(dev)
    return span_score(dev, model) if is_tagger(model) else likelihood_score(dev)


def _accuracy(dev: Rows) -> Any:
    def score(model: Any) -> float:
        right = logits_of(model, dev.data.rows, dev.data.collate).argmax(-1) == dev.data.labels
        return float(right.float().mean())

    return score


def _note(done: Fitted, policy: Policy, spread: dict[str, float]) -> dict[str, Any]:
    return {"policy": repr(policy), "target_entropy": spread, **asdict(done)}
