"""Selective attention over the sentences of a bag (Lin et al. 2016, ACL).

Shapes: B sentences, D size of a sentence's vector, C relations, G bags.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelectiveAttention(nn.Module):
    """Logits of bags, (G, C), from vectors of sentences, (B, D).

    In training a bag's weights are softmax_j(v_j · W[y]) by its label y. Without a label each relation weighs the
    sentences by itself, and its logit is that of its own mixture.
    """

    def __init__(self, width: int, relations: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(relations, width))
        self.bias = nn.Parameter(torch.empty(relations))

    def forward(self, vectors: Tensor, bags: Tensor, labels: Tensor | None = None) -> Tensor:
        count = int(bags.max()) + 1
        scores = vectors @ self.weight.T  # (B, C): how well each sentence suits each relation
        weights = softmax_in_bags(scores, bags, count)
        if labels is not None:
            chosen = weights.gather(1, labels[bags].unsqueeze(1))
            mixed = vectors.new_zeros(count, vectors.shape[1]).index_add_(0, bags, chosen * vectors)
            return mixed @ self.weight.T + self.bias
        # The mixture of relation r scores sum_j w_jr (v_j · W_r) for r itself.
        return vectors.new_zeros(count, len(self.bias)).index_add_(0, bags, weights * scores) + self.bias


def softmax_in_bags(scores: Tensor, bags: Tensor, count: int) -> Tensor:
    """softmax of each column of ``scores`` (B, C) within each of ``count`` bags."""
    index = bags.unsqueeze(1).expand_as(scores)
    highest = scores.new_full((count, scores.shape[1]), -torch.inf).scatter_reduce(0, index, scores, "amax")
    powers = (scores - highest[bags]).exp()
    return powers / scores.new_zeros(count, scores.shape[1]).index_add(0, bags, powers)[bags]
