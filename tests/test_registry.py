"""The registry: one owner a name, loud failure, plug-ins that run only when asked for."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, ClassVar

import pytest

from compresskit import registry
from compresskit.core.compressor import Compressor
from compresskit.errors import CompressKitError


class Fake(Compressor):
    """Does nothing."""

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "fake"
    sites: ClassVar[frozenset[str]] = frozenset({"ffn"})

    def apply(self, model: Any, sites: Any, context: Any) -> None:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(registry, "_LAYERS", dict(registry._LAYERS))


def code_of(act: Any) -> str:
    with pytest.raises(CompressKitError) as caught:
        act()
    return caught.value.code


def install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name=name, value=value, group=registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])


def test_a_method_is_found_by_its_full_name() -> None:
    assert registry.register(Fake) is Fake
    assert registry.method("pruning.fake") is Fake
    assert registry.register(Fake) is Fake


def test_methods_come_in_the_order_of_families() -> None:
    families = [cls.family for cls in registry.methods().values()]
    assert families == sorted(families, key=registry.FAMILIES.index)


def test_two_owners_of_a_name_and_an_unknown_family() -> None:
    registry.register(Fake)

    class Other(Fake):
        """Another class of the same name."""

    class Lost(Fake):
        """Of no family."""

        family: ClassVar[str] = "magic"

    assert code_of(lambda: registry.register(Other)) == "CK-T001"
    assert code_of(lambda: registry.register(Lost)) == "CK-T001"


@pytest.mark.parametrize("wrong", ["fake", "prunning.fake", "pruning.fak", "quantization.fake"])
def test_an_unknown_method_gets_the_closest(wrong: str) -> None:
    registry.register(Fake)
    with pytest.raises(CompressKitError) as caught:
        registry.method(wrong)
    assert caught.value.code == "CK-R011"
    assert "did you mean 'pruning.fake'?" in caught.value.fix


def test_an_unknown_layer_kind() -> None:
    assert code_of(lambda: registry.layer("from_the_future")) == "CK-L003"


def test_plugins_are_listed_but_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "pruning.fake", "module_that_must_not_run:Fake")
    assert [point.name for point in registry.plugins()] == ["pruning.fake"]
    with pytest.raises(CompressKitError) as caught:
        registry.method("pruning.fake")
    assert caught.value.fix == "enable the installed plug-in with --plugin pruning.fake"
    assert code_of(lambda: registry.load_plugins(["absent"])) == "CK-U004"
    assert code_of(lambda: registry.load_plugins(["pruning.fake"])) == "CK-U005"


def test_a_plugin_registers_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_plugin")
    module.Fake = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_plugin", module)
    install(monkeypatch, "pruning.fake", "a_plugin:Fake")
    assert code_of(lambda: registry.load_plugins(["pruning.fake"])) == "CK-U005"
    registry.register(Fake)
    registry.load_plugins(["pruning.fake"])
    assert registry.method("pruning.fake") is Fake
