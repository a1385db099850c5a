"""Where methods and layer kinds are registered and looked up: one decorator each.

Built-in methods are the modules ``compresskit/methods/<family>/<method>.py``. Methods of other packages are declared
as entry points of the group ``compresskit.methods``; they are listed, and imported only when asked for by name
(``--plugin NAME``), since importing runs their code.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from compresskit.errors import InternalError, ModelError, RecipeError, UsageError

if TYPE_CHECKING:
    from compresskit.core.compressor import Compressor
    from compresskit.nn.base import CompressedLayer

FAMILIES = ("pruning", "quantization", "distillation", "sharing", "decomposition", "attention")
ENTRY_POINT_GROUP = "compresskit.methods"

_METHODS: dict[str, type[Compressor]] = {}
_LAYERS: dict[str, type[CompressedLayer]] = {}

AnyCompressor = TypeVar("AnyCompressor", bound="type[Any]")
AnyLayer = TypeVar("AnyLayer", bound="type[Any]")


def register(cls: AnyCompressor) -> AnyCompressor:
    """Class decorator: make a ``Compressor`` known as ``family.name``."""
    if cls.family not in FAMILIES:
        raise InternalError(
            "CK-T001", f"{cls.__name__} names the family {cls.family!r}", fix=f"use one of {', '.join(FAMILIES)}"
        )
    return _add(_METHODS, f"{cls.family}.{cls.name}", cls)


def register_layer(cls: AnyLayer) -> AnyLayer:
    """Class decorator: make a ``CompressedLayer`` known by its ``kind``, the word that the layout stores."""
    return _add(_LAYERS, cls.kind, cls)


def _add(table: dict[str, Any], name: str, cls: Any) -> Any:
    known = table.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InternalError(
            "CK-T001",
            f"{name!r} is registered twice",
            where=f"{known.__module__}.{known.__qualname__} and {cls.__module__}.{cls.__qualname__}",
            fix="rename one of them or uninstall one of the packages",
        )
    table[name] = cls
    return cls


def _import_all(package_name: str) -> None:
    package = importlib.import_module(package_name)
    for module in pkgutil.walk_packages(package.__path__, package_name + "."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)


def methods() -> dict[str, type[Compressor]]:
    """All registered methods by full name, in the order of families."""
    _import_all("compresskit.methods")
    return dict(sorted(_METHODS.items(), key=lambda item: (FAMILIES.index(item[1].family), item[0])))


def method(name: str) -> type[Compressor]:
    """The method ``family.name``.

    Raises:
        RecipeError: CK-R011, with the closest names.
    """
    table = methods()
    if name not in table:
        last = name.rpartition(".")[2]
        close = [known for known in table if known.endswith(f".{last}")] or difflib.get_close_matches(name, table, n=1)
        offered = [point.name for point in plugins() if point.name == name]
        raise RecipeError(
            "CK-R011",
            f"there is no method {name!r}",
            fix=(
                f"enable the installed plug-in with --plugin {name}"
                if offered
                else (f"did you mean {close[0]!r}? " if close else "") + "`compresskit methods` lists them"
            ),
        )
    return table[name]


def layer(kind: str) -> type[CompressedLayer]:
    """The layer class that a layout calls ``kind``.

    Raises:
        ModelError: CK-L003: the checkpoint was written by a newer version or needs a plug-in.
    """
    if kind not in _LAYERS:
        _import_all("compresskit.nn")
    if kind not in _LAYERS:
        raise ModelError(
            "CK-L003",
            f"the layout names the layer kind {kind!r}, which this installation doesn't have",
            fix="upgrade compresskit, or import the package that registers it before loading",
        )
    return _LAYERS[kind]


def plugins() -> list[EntryPoint]:
    """Entry points of other packages; none of them is imported by this."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)


def load_plugins(names: list[str]) -> None:
    """Import the named plug-ins.

    Raises:
        UsageError: CK-U004 for a name that isn't installed, CK-U005 for one that fails or registers nothing.
    """
    installed = {point.name: point for point in plugins()}
    for name in names:
        if name not in installed:
            raise UsageError(
                "CK-U004",
                f"no installed package offers the plug-in {name!r}",
                fix=f"installed: {', '.join(installed) or 'none'}",
            )
        before = set(_METHODS)
        try:
            loaded = installed[name].load()
        except Exception as error:
            raise UsageError(
                "CK-U005", f"the plug-in {name!r} can't be imported", where=installed[name].value, why=repr(error)
            ) from error
        if set(_METHODS) == before and loaded not in _METHODS.values():
            raise UsageError(
                "CK-U005",
                f"the plug-in {name!r} registered no method",
                where=installed[name].value,
                fix="decorate its Compressor with @compresskit.register",
            )
