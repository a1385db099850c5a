"""The weight view: every matrix of a model as (O, I), whatever module holds it.

Algorithms of pruning, quantization, sharing and decomposition are written once against this view. New holders join by
a view class, without a change in any method.

Some modules hold several matrices as parameters. Each has a path below its module's, which stays when the module has
been opened and a layer stands there: ``lstm.weight_ih_l0`` of an ``nn.LSTM`` or ``nn.GRU``, ``experts.down.3`` of
the fourth expert of a fused bank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention
from transformers.pytorch_utils import Conv1D

from compresskit.errors import ModelError
from compresskit.nn.experts import FUSED, STACKS
from compresskit.nn.recurrent import CELLS, matrix_names
from compresskit.nn.xlnet import PROJECTIONS
from compresskit.nn.xlnet import matrix as xlnet_matrix

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
    def bias_parameter(self) -> nn.Parameter | None:
        """The bias as the parameter that stores it and nothing else, or None: other modules may hold it too."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, nn.Parameter) else None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that stores the matrix; equal objects mean tied matrices."""
        return cast(nn.Parameter, self.module.weight)

    @property
    def owner(self) -> str:
        """Path of ``module``."""
        return self.path

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


class PartView(WeightView):
    """A matrix that is one of several parameters of its module, or a part of one.

    Args:
        owner: path of the module.
        name: what the matrix is called below it.
        module: the module that holds the matrix.
    """

    def __init__(self, owner: str, name: str, module: nn.Module) -> None:
        super().__init__(f"{owner}.{name}" if owner else name, module)
        self.name = name

    @property
    def owner(self) -> str:
        return self.path[: -len(self.name)].rstrip(".")

    @property
    def bias_parameter(self) -> None:
        return None

    @property
    def parameter(self) -> nn.Parameter:
        return cast(nn.Parameter, getattr(self.module, self.name))


class GateView(PartView):
    """All gates of one layer and direction of an ``nn.LSTM`` or ``nn.GRU``, on its inputs or on its states: (gH, I)."""

    @property
    def weight(self) -> Tensor:
        return self.parameter.data

    @property
    def bias(self) -> Tensor | None:
        found = getattr(self.module, self.name.replace("weight", "bias"), None)
        return None if found is None else cast(Tensor, found.data)


class ExpertView(PartView):
    """One expert's matrix of a fused bank: gate and inputs (2F, H), or outputs (H, F)."""

    @property
    def parameter(self) -> nn.Parameter:
        return cast(nn.Parameter, getattr(self.module, STACKS[self.name.partition(".")[0]]))

    @property
    def weight(self) -> Tensor:
        return self.parameter.data[int(self.name.rpartition(".")[2])]

    @property
    def bias(self) -> None:
        return None


class XLNetView(PartView):
    """A projection of XLNet's relative attention, stored (H, N, D)."""

    @property
    def weight(self) -> Tensor:
        return xlnet_matrix(self.parameter.data, self.name)

    @property
    def bias(self) -> None:
        return None


def parts(path: str, module: nn.Module) -> Iterator[PartView]:
    """The matrices that ``module`` at ``path`` holds as parameters of its own; none where it holds at most one."""
    if type(module) in CELLS:
        for name in matrix_names(cast(nn.RNNBase, module)):
            yield GateView(path, name, module)
    elif type(module) in FUSED:
        for name, stock in STACKS.items():
            for expert in range(len(getattr(module, stock))):
                yield ExpertView(path, f"{name}.{expert}", module)
    elif type(module) is XLNetRelativeAttention:
        for name in PROJECTIONS:
            yield XLNetView(path, name, module)


def part(model: nn.Module, path: str) -> PartView | None:
    """The view of the matrix at ``path`` if that is one of several parameters of a module, or a part of one."""
    owner = path
    for _ in range(2):
        owner = owner.rpartition(".")[0]
        try:
            module = model.get_submodule(owner)
        except AttributeError:
            continue
        return next((found for found in parts(owner, module) if found.path == path), None)
    return None


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
    inside = part(model, path)
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
            found.extend(parts(path, module))
        item = view_of(path, module)
        if item is not None and item.table == tables:
            found.append(item)
    return found
