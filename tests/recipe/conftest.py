"""Toy methods, so that recipes are tested apart from the methods that exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, model_validator

from compresskit import registry
from compresskit.core.compressor import Compressor


class Toy(Compressor):
    """Removes nothing; has an option of each type."""

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "toy"
    sites: ClassVar[frozenset[str]] = frozenset({"ffn"})

    keep: float = Field(0.5, gt=0, le=1, description="share that stays")
    criterion: Literal["magnitude", "wanda"] = "magnitude"
    refit: bool = False
    groups: tuple[tuple[int, ...], ...] = ()
    drop: tuple[int, ...] | None = None
    rank: int | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _not_both(self) -> Toy:
        if self.refit and self.keep == 1.0:
            raise ValueError("refit needs keep below 1")
        return self

    def apply(self, model: Any, sites: Sequence[Any], context: Any) -> None:
        raise NotImplementedError


class Trainer(Compressor):
    """Trains nothing."""

    family: ClassVar[str] = "distillation"
    name: ClassVar[str] = "toy"
    sites: ClassVar[frozenset[str]] = frozenset({"model"})
    needs: ClassVar[Any] = frozenset({"teacher", "training"})

    steps: int | None = Field(None, ge=1)
    lr: float = Field(1e-4, gt=0)

    def apply(self, model: Any, sites: Sequence[Any], context: Any) -> None:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Toy, Trainer):
        monkeypatch.setitem(registry._METHODS, cls.full_name(), cls)
