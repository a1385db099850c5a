"""The weight view: every matrix of a model as (O, I), whatever module holds it.

Algorithms of pruning, quantization, sharing and decomposition are written once against this view. New holders (3-D
experts, XLNet's parameters) join by a view class, without a change in any method.

An ``nn.LSTM`` or ``nn.GRU`` holds several matrices: each has the path of its parameter, ``lstm.weight_ih_l0``, also
when a compressed layer stands there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compresskit.errors import ModelError
from compresskit.nn.recurrent import CELLS, matrix_names

_VIEWS: dict[type[nn.Module], type[WeightView]] = {}


class WeightView(ABC):
    """One matrix of a model.

    Args:
        path: dotted path of the module, from the model's root.
        module: the module that holds the matrix.
    """

    holds: ClassVar[type[nn.Module]]
    table: ClassVar[bool] = False

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module = path, module

    def __init_subclass__(cls) -> None:
        if "holds" in vars(cls):
            _VIEWS[cls.holds] = cls

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The values as (O, I), sharing storage with the module; for a table (V, D)."""

    @property
    def bias(self) -> Tensor | None:
        """The bias (O,), sharing storage with the module, or None."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else cast(Tensor, bias.data)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that stores the matrix; equal objects mean tied matrices."""
        return cast(nn.Parameter, self.module.weight)

    @property
    def out_features(self) -> int:
        """O (or V)."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """I (or D)."""
        return self.weight.shape[1]

    def assign(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Overwrite the values in place, same shape; ties are kept. ``bias`` None leaves the bias as it is."""
        if weight.shape != self.weight.shape:
            raise ModelError(
                "CK-M030",
                f"{tuple(weight.shape)} values can't overwrite a {tuple(self.weight.shape)} matrix",
                where=self.path,
            )
        with torch.no_grad():
            self.weight.copy_(weight)
            if bias is not None:
                if self.bias is None:
                    raise ModelError("CK-M030", "the matrix has no bias to overwrite", where=self.path)
                self.bias.copy_(bias)


class LinearView(WeightView):
    """``nn.Linear``, stored (O, I)."""

    holds = nn.Linear

    @property
    def weight(self) -> Tensor:
        return self.parameter.data


class Conv1DView(WeightView):
    """GPT-2's ``Conv1D``, stored (I, O)."""

    holds = Conv1D

    @property
    def weight(self) -> Tensor:
        return self.parameter.data.T


class EmbeddingView(WeightView):
    """``nn.Embedding``, a table (V, D)."""

    holds = nn.Embedding
    table = True

    @property
    def weight(self) -> Tensor:
        return self.parameter.data


class GateView(WeightView):
    """All gates of one layer and direction of an ``nn.LSTM`` or ``nn.GRU``, on its inputs or on its states: (gH, I)."""

    @property
    def name(self) -> str:
        """``weight_ih_l0`` and the like."""
        return self.path.rpartition(".")[2]

    @property
    def parameter(self) -> nn.Parameter:
        return cast(nn.Parameter, getattr(self.module, self.name))

    @property
    def weight(self) -> Tensor:
        return self.parameter.data

    @property
    def bias(self) -> Tensor | None:
        found = getattr(self.module, self.name.replace("weight", "bias"), None)
        return None if found is None else cast(Tensor, found.data)


def gates(path: str, module: nn.Module) -> Iterator[WeightView]:
    """The matrices of ``module``, an LSTM or GRU at ``path`` as torch has it; none of any other module."""
    if type(module) in CELLS:
        for name in matrix_names(cast(nn.RNNBase, module)):
            yield GateView(f"{path}.{name}" if path else name, module)


def gate(model: nn.Module, path: str) -> WeightView | None:
    """The view of the matrix at ``path`` if that is a parameter of an LSTM or GRU as torch has it."""
    owner = path.rpartition(".")[0]
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    return next((found for found in gates(owner, module) if found.path == path), None)


def view_of(path: str, module: nn.Module) -> WeightView | None:
    """The view of ``module``, or None if it holds no matrix that we know.

    The class must be exactly the one that a view names: subclasses (other libraries' quantized Linear) store
    something else.
    """
    cls = _VIEWS.get(type(module))
    return None if cls is None else cls(path, module)


def view(model: PreTrainedModel, path: str) -> WeightView:
    """The weight view of the module at ``path``.

    Raises:
        ModelError: CK-M030, if the module is absent or holds no plain matrix.
    """
    inside = gate(model, path)
    if inside is not None:
        return inside
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ModelError("CK-M030", "the model has no such module", where=path) from None
    found = view_of(path, module)
    if found is None:
        raise ModelError(
            "CK-M030",
            f"{type(module).__name__} holds no plain matrix",
            where=path,
            fix="apply this method before the one that replaced the module",
        )
    return found


def matrices(model: nn.Module, under: str = "", *, tables: bool = False) -> list[WeightView]:
    """Views of all matrices below the module ``under``, in the model's order; of embedding tables if ``tables``."""
    root = model.get_submodule(under) if under else model
    found: list[WeightView] = []
    for name, module in root.named_modules():
        path = ".".join(part for part in (under, name) if part)
        if not tables:
            found.extend(gates(path, module))
        item = view_of(path, module)
        if item is not None and item.table == tables:
            found.append(item)
    return found
