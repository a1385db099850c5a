"""Other projects' compression, each in an adapter; a package that isn't there skips its peers with the reason."""

from __future__ import annotations

from compresskit.suite.peers.base import Made, Material, Peer
from compresskit.suite.peers.onnx_peers import OrtDynamic, OrtFused, OrtFusedPlainNorm
from compresskit.suite.peers.openvino_peers import NncfPtq, NncfWeights, OpenVino
from compresskit.suite.peers.torch_peers import BitsAndBytesInt8, BitsAndBytesNf4, TorchAoInt8, TorchDynamic

__all__ = ["PEERS", "Made", "Material", "Peer"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        OrtDynamic(),
        OrtFused(),
        OrtFusedPlainNorm(),
        OpenVino(),
        NncfWeights(),
        NncfPtq(),
        TorchDynamic(),
        TorchAoInt8(),
        BitsAndBytesInt8(),
        BitsAndBytesNf4(),
    )
}
