"""First values of the layers that this package's models are made of."""

from __future__ import annotations

import torch
from torch import nn


def initialise(module: nn.Module) -> None:
    """Fill one layer: Xavier for matrices, orthogonal for the states of an LSTM or GRU, small word vectors."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.1)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.RNNBase):
        for name, parameter in module.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.uniform_(parameter, -0.1, 0.1)
