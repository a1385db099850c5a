"""Peers that quantize in torch. What they store is measured as the state dict that ``torch.save`` writes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from compresskit.suite.peers.base import Made, Material, Peer, link_all

_ENGINES = "compresskit.suite.peers.torch_engines"


class _TorchPeer(Peer):
    engine: ClassVar[str]
    note: ClassVar[str] = ""

    def make(self, material: Material, folder: Path) -> Made:
        link_all(material.source.path, folder)
        return Made(f"{_ENGINES}:{self.engine}={folder}", note=self.note)


class TorchDynamic(_TorchPeer):
    """torch.ao's dynamic quantization."""

    name = "torch-ao-dynamic"
    title = "torch.ao quantize_dynamic"
    packages = ("torch",)
    engine = "TorchAoDynamic"
    note = "int8 weights of linear layers, one activation scale a tensor"


class TorchAoInt8(_TorchPeer):
    """torchao, eager."""

    name = "torchao-int8"
    title = "torchao int8 (eager)"
    packages = ("torchao",)
    engine = "TorchAo"
    note = "Int8DynamicActivationInt8Weight, without torch.compile"


class BitsAndBytesInt8(_TorchPeer):
    """bitsandbytes in 8 bits."""

    name = "bitsandbytes-int8"
    title = "bitsandbytes int8"
    packages = ("bitsandbytes", "accelerate")
    engine = "BitsAndBytes8"
    note = "LLM.int8()"


class BitsAndBytesNf4(_TorchPeer):
    """bitsandbytes in 4 bits."""

    name = "bitsandbytes-nf4"
    title = "bitsandbytes NF4"
    packages = ("bitsandbytes", "accelerate")
    engine = "BitsAndBytes4"
    note = "computing in float32"
