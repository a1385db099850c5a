"""What the methods that quantize with bitsandbytes share: whether it is there, and how it is had."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from compresskit.core.sites import Site
from compresskit.errors import UsageError
from compresskit.nn.bitsandbytes_layers import kernels

PACKAGE = "bitsandbytes"
HINT = "pip install 'compresskit[bitsandbytes]'"


def installed() -> bool:
    """Whether bitsandbytes can be imported; nothing is imported to see it."""
    return find_spec(PACKAGE) is not None


def refuse_without_package(site: Site) -> str | None:
    """Why nothing can be done at ``site`` on this machine, or None."""
    return None if installed() else f"the package {PACKAGE}, which quantizes it, isn't installed: {HINT}"


def library() -> Any:
    """The module ``bitsandbytes``.

    Raises:
        UsageError: CK-U041, if it can't be imported.
    """
    found = kernels()
    if found is None:
        raise UsageError("CK-U041", f"the package {PACKAGE} isn't installed", fix=HINT)
    return found
