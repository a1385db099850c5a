"""From a task to an ONNX graph in memory, by transformers' own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from compresskit.checkpoint.quiet import quiet_transformers
from compresskit.errors import ExportError, UsageError
from compresskit.export.graph import Task
from compresskit.nn.base import exporting
from compresskit.nn.bitsandbytes_layers import MixedInt8Linear
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.nn.experts import FUSED, fused_onnx
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.packed import PackedLinear
from compresskit.nn.recurrent import Recurrent
from compresskit.nn.static_int8 import StaticInt8Linear

Profile = Literal["fast", "static", "portable"]

OPSETS: dict[str, int] = {"fast": 23, "static": 21, "portable": 21}
"""23 is the first with ``Attention`` as one operator; 21 is read by every runtime of the last years."""

OLDEST, NEWEST = 21, 24
_REGISTRATION = "torch.onnx._internal.exporter._registration"


def check_profile(name: str) -> Profile:
    """``name`` as a profile.

    Raises:
        UsageError: CK-X011.
    """
    if name not in OPSETS:
        raise UsageError("CK-X011", f"there is no profile {name!r}", fix=f"profiles: {', '.join(OPSETS)}")
    return cast(Profile, name)


def trace(task: Task, opset: int) -> Any:
    """The graph of ``task`` as an ``onnx_ir.Model``.

    Raises:
        ExportError: CK-X001, an operation can't be exported; CK-X002, the exporter isn't installed.
    """
    try:
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise ExportError(
            "CK-X002", "transformers has no ONNX exporter", why=str(error), fix="pip install 'transformers>=5.23'"
        ) from error
    shapes = {
        name: {axis: torch.export.Dim.AUTO for axis, dimension in enumerate(dimensions) if dimension is not None}
        for name, dimensions in zip(task.sample, task.inputs.values(), strict=True)
    }
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=opset)
    with _silence(), _codes_stay():
        try:
            return OnnxExporter().export(task.module, task.sample, config=config).program  # type: ignore[arg-type]
        except Exception as error:  # torch.export and the converter raise whatever an operator raises
            raise ExportError(
                "CK-X001",
                f"the graph {task.name!r} of {type(_inner(task.module)).__name__} could not be traced",
                where=_place(error),
                why=_cause(error),
                fix="export the model without the step that put this layer there, and tell us",
            ) from error


def _inner(module: nn.Module) -> nn.Module:
    return getattr(module, "model", module)


def _cause(error: BaseException) -> str:
    """The first line of the innermost error: the outer ones say only that exporting failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _place(error: BaseException) -> str:
    """The function of the model's code where tracing stopped, file and line left out."""
    found = ""
    trail = error.__traceback__
    while trail is not None:
        name = trail.tb_frame.f_globals.get("__name__", "")
        if name.startswith(("transformers.models.", "compresskit.nn.")):
            found = f"{name}.{trail.tb_frame.f_code.co_qualname}"
        trail = trail.tb_next
    return found


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Exporters print on stdout, log and warn about themselves; what matters is checked afterwards."""
    logger = logging.getLogger(_REGISTRATION)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet_transformers():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _codes_stay() -> Iterator[None]:
    """While open, the exporter's optimizer folds nothing that reads codes: small ones would become float weights.

    Nor products of weights: an LSTM needs the whole of a matrix that the file should hold as two thin factors.
    """
    import onnxscript.optimizer

    before = onnxscript.optimizer.optimize_ir

    def optimize(program: Any, *arguments: Any, should_fold: Any = None, **options: Any) -> None:
        def fold(node: Any) -> bool | None:
            grows = node.op_type == "MatMul"  # the product of two thin factors is larger than they are
            return False if grows or _reads_codes(node) else should_fold and should_fold(node)

        before(program, *arguments, should_fold=fold, **options)

    onnxscript.optimizer.optimize_ir = optimize  # type: ignore[assignment]
    try:
        yield
    finally:
        onnxscript.optimizer.optimize_ir = before


def _reads_codes(node: Any) -> bool:
    constants = [value.const_value for value in node.inputs if value is not None]
    return any(
        constant is not None
        and constant.dtype.name in ("INT8", "UINT8", "FLOAT16", "FLOAT8E4M3FN")
        and constant.size > 1
        for constant in constants
    )


@contextlib.contextmanager
def traceable_attention(model: PreTrainedModel) -> Iterator[None]:
    """T5's position bias defeats the exporter's fused attention: plain attention for a while, then what was before.

    Attentions that compresskit replaced keep computing what their settings say.
    """
    if not any(hasattr(module, "has_relative_attention_bias") for module in model.modules()):
        yield
        return
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


@contextlib.contextmanager
def lowering(profile: Profile) -> Iterator[None]:
    """While open, integer layers compute, in torch and in the graph, what ``profile`` says.

    ``fast``: contrib operators of ONNX Runtime where they help. ``static``: standard operators only, so that
    activations with fixed scales are quantized and dequantized. ``portable``: the same, and weights of int8 layers with
    dynamic activations are cast and scaled as they are used; their activations stay float.
    """
    with contextlib.ExitStack() as stack:
        if profile != "fast":
            stack.enter_context(swapped(QuantizedEmbedding, "contrib_onnx", QuantizedEmbedding.looked_up))
            stack.enter_context(swapped(StaticInt8Linear, "contrib_onnx", StaticInt8Linear.standard_onnx))
            stack.enter_context(swapped(PackedLinear, "contrib_onnx", PackedLinear.standard_onnx))
            stack.enter_context(swapped(Recurrent, "contrib_onnx", Recurrent.standard_onnx))
        if profile == "portable":
            stack.enter_context(swapped(Int8Linear, "forward", _weights_only))
            stack.enter_context(swapped(MixedInt8Linear, "forward", _weights_only))
        for bank in FUSED:
            stack.enter_context(swapped(bank, "forward", _without_routing(bank.forward)))
        yield


def _without_routing(stock: Any) -> Any:
    """The ``forward`` of a bank of experts that calls all of them while it is traced, and is ``stock`` otherwise."""

    def forward(bank: torch.nn.Module, *arguments: Any) -> Any:
        return fused_onnx(bank, *arguments) if exporting() else stock(bank, *arguments)

    return forward


@contextlib.contextmanager
def stepping(profile: Profile, task: Task) -> Iterator[None]:
    """While open, and if ``task`` is one token's step in the ``fast`` profile, layers emit their nodes for few tokens.

    Decoding reads each weight once a token: the codes must never be unpacked to floats, the output head's least.
    """
    with contextlib.ExitStack() as stack:
        if profile == "fast" and task.step:
            stack.enter_context(swapped(Int8Linear, "nodes", Int8Linear.step_onnx))
            stack.enter_context(swapped(QuantizedHead, "nodes", QuantizedHead.step_onnx))
            stack.enter_context(swapped(PackedLinear, "accuracy_level", 4))
        yield


@contextlib.contextmanager
def swapped(owner: type, name: str, method: Any) -> Iterator[None]:
    """While open, instances of ``owner`` have ``method`` under ``name``."""
    before = getattr(owner, name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _weights_only(layer: Int8Linear, x: torch.Tensor) -> torch.Tensor:
    if not exporting():
        return torch.nn.functional.linear(x, layer.weight.to(x.dtype), layer.bias)
    # The file holds the codes as (I, O): no transposition is left in the graph. DequantizeLinear before MatMul would be
    # fused by ONNX Runtime 1.31 into MatMulNBits, which quantizes the activations after all.
    result = x @ (layer.weight_codes.T.float() * layer.weight_scale)
    return result if layer.bias is None else result + layer.bias
