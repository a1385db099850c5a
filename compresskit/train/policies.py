"""Temperature policies: (teacher logits, student logits, progress) -> (T_teacher, T_student), each (N,).

``exp`` is DTR of MiDTD (Li et al. 2022); ``range`` is ours; the others are the neighbours it is compared with. A policy
is prepared once on all targets, where its rule needs to know them.

Shapes: N instances, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compresskit.numerics import temperatures as rules
from compresskit.numerics.fusion import wide

Pair = tuple[Tensor, Tensor]


class Policy(Protocol):
    """Temperatures of each instance."""

    def prepare(self, targets: Tensor, mask: Tensor | None = None) -> Policy:
        """The policy for these targets, (N, C), of which the rows in ``mask`` (N,) count."""
        ...

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        """Temperatures for logits (N, C); ``progress`` is the share of training that is done."""
        ...

    def learned(self) -> list[nn.Parameter]:
        """What it learns."""
        ...

    def advance(self) -> None:
        """Take a step by the gradients of what it learns."""
        ...


class _Unlearned:
    """A policy that learns nothing."""

    def learned(self) -> list[nn.Parameter]:
        return []

    def advance(self) -> None:
        """Nothing is learned."""


class _Unprepared(_Unlearned):
    """A policy that needs to know nothing beforehand."""

    def prepare(self, targets: Tensor, mask: Tensor | None = None) -> Any:
        return self


def _ones(logits: Tensor) -> Tensor:
    return wide(logits).new_ones(logits.shape[0])


@dataclass(frozen=True)
class Fixed(_Unprepared):
    """One temperature for all (Hinton et al. 2015); ``student`` None: the same on both sides."""

    teacher: float = 1.0
    student: float | None = None

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        ones = _ones(teacher)
        return self.teacher * ones, (self.teacher if self.student is None else self.student) * ones


@dataclass(frozen=True)
class Exponential(_Unlearned):
    """T = 1 + mu · exp(-k · H) of the target's entropy H (DTR).

    Args:
        mu_teacher: the paper's mu1, softens sharp targets.
        mu_student: the paper's mu2; the released code has +0.45, its run names say -0.45, 0 leaves the student at 1.
        k: the paper's k; ``auto``: ln 2 / median of H over all targets.
        normalise: H / ln C in place of H.
    """

    mu_teacher: float = 0.7
    mu_student: float = 0.0
    k: float | str = "auto"
    normalise: bool = False

    def prepare(self, targets: Tensor, mask: Tensor | None = None) -> Exponential:
        if self.k != "auto":
            return self
        return replace(self, k=rules.automatic_k(targets, mask, normalise=self.normalise))

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        return rules.temperatures(teacher, self.mu_teacher, self.mu_student, self.k, normalise=self.normalise)


@dataclass(frozen=True)
class Band(_Unprepared):
    """The temperature that brings H / ln C into [low, high]; the student stays at T = 1."""

    low: float = 0.05
    high: float = 0.3

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        return rules.band_temperature(teacher, self.low, self.high)[0], _ones(teacher)


@dataclass(frozen=True)
class Standardized(_Unprepared):
    """Each side divided by its own standard deviation times tau (Sun et al. 2024)."""

    tau: float = 1.0

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        sides = (rules.standardized_temperature(logits, self.tau) for logits in (teacher, student))
        first, second = sides
        return first, second


@dataclass(frozen=True)
class Dtkd(_Unprepared):
    """The sharper side gets the higher temperature; both add up to twice ``base`` (Wei and Bai 2024)."""

    base: float = 1.0

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        return rules.dtkd_temperatures(teacher, student, self.base)


@dataclass(frozen=True)
class Annealed(_Unprepared):
    """The teacher's logits times a factor that rises to 1 (Jafari et al. 2021): T falls from ``start`` to 1."""

    start: float = 5.0

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        share = min(1.0, max(0.0, progress))
        return (self.start + (1 - self.start) * share) * _ones(teacher), _ones(teacher)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


@dataclass
class Curriculum(_Unprepared):
    """One learned temperature that makes the task harder (CTKD, Li et al. 2023): gradients reversed, weight 0 to 1.

    The temperature takes a step when the student does.

    Args:
        lowest, width: T = lowest + width · sigmoid(v), with v starting at 0.
        lr: step of v.
    """

    lowest: float = 1.0
    width: float = 4.0
    lr: float = 0.1
    value: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.zeros(())), repr=False)

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        weight = (1 - float(torch.cos(torch.tensor(torch.pi * min(1.0, max(0.0, progress)))))) / 2
        reversed_value: Tensor = _Reversed.apply(self.value, weight)
        found = (self.lowest + self.width * reversed_value.sigmoid()).to(teacher.device) * _ones(teacher)
        return found, found

    def learned(self) -> list[nn.Parameter]:
        return [self.value]

    def advance(self) -> None:
        if self.value.grad is not None:
            with torch.no_grad():
                self.value.sub_(self.lr * self.value.grad)
            self.value.grad = None


POLICIES: dict[str, Callable[..., Policy]] = {
    "exp": Exponential,
    "range": Band,
    "fixed": Fixed,
    "standardized": Standardized,
    "dtkd": Dtkd,
    "annealed": Annealed,
    "curriculum": Curriculum,
}


@dataclass(frozen=True)
class BySoftness(_Unlearned):
    """Our default: ``range`` where the teacher is soft, ``exp`` where it is sharp.

    ``exp`` can only soften. A teacher of noisy labels is too soft already; its targets have to be hardened.

    Args:
        threshold: median of H / ln C above which a teacher counts as soft.
    """

    threshold: float = 0.5
    soft: Policy = field(default_factory=Band)
    sharp: Policy = field(default_factory=Exponential)

    def prepare(self, targets: Tensor, mask: Tensor | None = None) -> Policy:
        values = rules.entropy(targets) / torch.tensor(float(max(2, targets.shape[-1]))).log()
        if mask is not None:
            values = values[mask]
        chosen = self.soft if float(values.median()) > self.threshold else self.sharp
        return chosen.prepare(targets, mask)

    def __call__(self, teacher: Tensor, student: Tensor, progress: float = 0.0) -> Pair:
        return self.prepare(teacher)(teacher, student, progress)
