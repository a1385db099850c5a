"""Export from end to end: trace, clean, write aside, check, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.calibrate.forward import evaluating
from compresskit.checkpoint.skeleton import model_dtype
from compresskit.checkpoint.source import open_source
from compresskit.errors import ExportError, UsageError
from compresskit.export import parity
from compresskit.export.audit import Audit, audit
from compresskit.export.batches import decode_batches, forward_batches
from compresskit.export.clean import clean
from compresskit.export.generation import decode_task, prefill_task
from compresskit.export.graph import Task, forward_task, is_generative, is_seq2seq
from compresskit.export.names import name_all
from compresskit.export.publish import check_target, publish, staging
from compresskit.export.report import ExportReport, Graph
from compresskit.export.seq2seq import ENCODER_FILE, seq2seq_jobs
from compresskit.export.trace import (
    NEWEST,
    OLDEST,
    OPSETS,
    Profile,
    check_profile,
    lowering,
    stepping,
    trace,
    traceable_attention,
)
from compresskit.export.writing import check_writing
from compresskit.nn.kv_cache import without

Progress = Callable[[float, str], None]
Batches = Mapping[str, Mapping[str, Tensor]]

_FLOAT_CACHE = (
    "quantization.kv_cache is not in the files: no operator of ONNX reads a cache of a few bits, so they take and give "
    "keys and values in floats"
)

_REFUSED = (torch.bfloat16, torch.float64)

EXTERNAL_ABOVE = 2_000_000_000
"""Bytes of weights from which they go into a second file: protobuf holds 2 GiB."""


def export_onnx(
    model: PreTrainedModel | str | Path,
    output: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sentence_transformer: Any = None,
    pooling: bool | None = None,
    cache: bool = True,
    profile: Profile = "fast",
    opset: int | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write ``model`` as an ONNX file that ONNX Runtime was seen to compute the same with.

    Inputs are named as the tokenizer's, int64 (batch, sequence); outputs are ``logits``, or ``last_hidden_state`` and
    with pooling ``sentence_embedding``. A decoder gives two files: ``output`` for the prompt, which also gives the
    cache, and ``decoder_with_past.onnx`` beside it for each further token. An encoder-decoder that writes gives three,
    in the place of ``output`` and named as Optimum names them: ``encoder_model.onnx``, ``decoder_model.onnx`` for the
    first token and ``decoder_with_past_model.onnx`` for each further one. Where ``output`` isn't ``model.onnx``, its
    name stands before theirs.

    Args:
        model: in memory, or a checkpoint that is opened together with its tokenizer and sentence-transformers files.
        output: the file; inside a compressed checkpoint its manifest learns of it.
        sentence_transformer: how to pool and whether to normalize.
        pooling: put that into the graph; by default where the checkpoint says how.
        cache: False makes one graph of a model that writes text, from all ids to all logits.
        profile: ``fast`` integer products for ONNX Runtime; ``portable`` int8 weights, float products.
        opset: of ONNX, 21 to 24; the profile's by default.

    Raises:
        ExportError: CK-X001 to CK-X008, CK-X013; nothing is published then.
        UsageError: CK-X009, CK-X011.
    """
    began = time.perf_counter()
    tell = progress or (lambda share, what: None)
    target = check_target(Path(output))
    version = _opset(profile, opset)
    if not isinstance(model, PreTrainedModel):
        tell(0.0, "load the model")
        source = open_source(model)
        tokenizer = tokenizer or source.load_tokenizer()
        sentence_transformer = sentence_transformer or source.sentence_transformer
        model = source.load_model()
    if pooling is None:
        pooling = sentence_transformer is not None and bool(sentence_transformer.pooling)
    _require_float32(model)
    held_to = parity.rule(model, profile)
    cases: list[parity.Case] = []
    made: dict[str, tuple[Path, Task, Audit]] = {}
    with staging(target) as folder, evaluating(model), without(model) as had_caches, lowering(profile):
        jobs = _jobs(model, tokenizer, sentence_transformer, pooling, cache, target)
        for number, (file, task, batches) in enumerate(jobs):
            begin = number / len(jobs)
            tell(begin, f"trace: {file}")
            path, stepped = folder / file, profile == "fast" and task.step
            with traceable_attention(model), stepping(profile, task):
                program = trace(task, version)
            clean(program)
            name_all(program, task)
            _write(program, path)
            tell(begin + 0.6 / len(jobs), f"check: {file}")
            _check(path)
            found = parity.measure(task, batches, parity.session(path))
            parity.require(found, parity.step_rule(model, held_to) if stepped else held_to)
            cases += found
            made[task.name] = path, task, audit(path, model, task)
        if ENCODER_FILE in made:
            sessions = {name: parity.session(path) for name, (path, _, _) in made.items()}
            held = parity.step_rule(model, held_to) if profile == "fast" else held_to
            cases.append(check_writing(model, sessions, jobs[0][2]["padded"], held))
            parity.require(cases[-1:], held)
            target = target.with_name(jobs[0][0])
        staged = [path for name, _, _ in made.values() for path in sorted(folder.glob(f"{name.name}*"))]
        sizes = {path.name: path.stat().st_size for path in staged}
        tell(0.98, "publish")
        publish(staged, target)
    graphs = {name: _described(target.parent / path.name, task, report) for name, (path, task, report) in made.items()}
    seconds = time.perf_counter() - began
    warnings = [_FLOAT_CACHE] if had_caches and any(task.step for _, task, _ in made.values()) else []
    return ExportReport(target, profile, version, held_to, graphs, sizes, cases, seconds, warnings)


def _opset(profile: str, opset: int | None) -> int:
    check_profile(profile)
    if opset is not None and not OLDEST <= opset <= NEWEST:
        raise UsageError("CK-X011", f"opset {opset} isn't supported", fix=f"give {OLDEST} to {NEWEST}")
    return OPSETS[profile] if opset is None else opset


def _require_float32(model: PreTrainedModel) -> None:
    computes_in = model_dtype(model)  # a scale of ours may be float16 in any model
    others = {str(parameter.dtype) for parameter in model.parameters() if parameter.dtype in _REFUSED}
    others |= set() if computes_in == torch.float32 else {str(computes_in)}
    if others or model.device.type != "cpu":
        raise ExportError(
            "CK-X012",
            f"a model in {', '.join(sorted(others)) or 'memory of ' + model.device.type} can't be exported as it is",
            why="the file is checked on the CPU, in the model's own type",
            fix='load it in float32 on the CPU: load_model(dtype="float32")',
        )


def _jobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    sentence_transformer: Any,
    pooling: bool,
    cache: bool,
    target: Path,
) -> list[tuple[str, Task, Batches]]:
    """The files to make: name, graph, batches to check it on."""
    prefix = "" if target.stem == "model" else f"{target.stem}_"
    if cache and is_seq2seq(model):
        return seq2seq_jobs(model, tokenizer, prefix)
    if cache and is_generative(model):
        step = f"{prefix}decoder_with_past.onnx"
        prompt = forward_batches(model, tokenizer)
        prompt = {name: {key: batch[key] for key in ("input_ids", "attention_mask")} for name, batch in prompt.items()}
        return [(target.name, prefill_task(model), prompt), (step, decode_task(model), decode_batches(model))]
    task = forward_task(model, tokenizer, pooling=pooling, sentence_transformer=sentence_transformer)
    return [(target.name, task, forward_batches(model, tokenizer))]


def _write(program: Any, path: Path) -> None:
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    onnx_ir.save(program, path, external_data=f"{path.name}.data" if weights > EXTERNAL_ABOVE else None)


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=False)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            "CK-X005",
            "the exported file is no valid ONNX",
            where=path.name,
            why=str(error).splitlines()[0][:300],
            fix="another --opset may do; please report it",
        ) from error


def _described(path: Path, task: Task, found: Audit) -> Graph:
    """Dimensions from the task: names where they vary, sizes where they don't."""

    def shapes(wanted: Mapping[str, tuple[str | None, ...]], sample: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            name: [size if axis is None else axis for axis, size in zip(wanted[name], tensor.shape, strict=True)]
            for name, tensor in sample.items()
        }

    outputs = shapes(task.outputs, task.run(task.sample))
    inputs = shapes(task.inputs, task.feed(task.sample))
    return Graph(path, path.stat().st_size, inputs, outputs, found)
