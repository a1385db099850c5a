"""How much a model's output would change if a neuron, a head or a block of features fell away: first-order Taylor.

No labels are needed. Setting a group of features a to zero changes the output y by about -J a, with J = ∂y/∂a. Its
squared length is the mean of (rᵀ J a)² over random directions r, and one backward pass per direction gives rᵀ J. For a
model that gives probabilities the fitting length is the Kullback-Leibler divergence, whose curvature is the Fisher
matrix: there the direction is the gradient of the log-probability of an outcome drawn from the model's own output. (A
distance to the model's own output would not do: its gradient is zero there.)

Sources: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8; Theis et al. 2018 for the
Fisher form. Shapes: B texts, T tokens, I features, G groups of I/G neighbouring features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.forward import Attended, PreHook, evaluating, first_tensor, hooked
from compresskit.calibrate.moments import refuse_unreached
from compresskit.calibrate.outputs import forward, output_kind, pool, result_mask
from compresskit.core.context import Batch
from compresskit.errors import DataError

Scalar = Callable[[PreTrainedModel, Batch, torch.Generator], Tensor]


def probe(model: PreTrainedModel, batch: Batch, generator: torch.Generator) -> Tensor:
    """A scalar of the model's output whose gradient probes one random direction of every text's output.

    Embedding models: Σ over texts of r·e with e the normalised mean embedding and r standard normal. Others: Σ over
    positions of log p(y), with y drawn from p.
    """
    output = forward(model, batch)
    mask = result_mask(model, batch)
    if output_kind(model) == "embedding":
        embedding = torch.nn.functional.normalize(pool(output, mask), dim=-1)  # (B, D)
        direction = torch.randn(embedding.shape, generator=generator).to(embedding)
        return (embedding * direction).sum()
    logits = output[mask] if output.dim() == 3 and output.shape[:2] == mask.shape else output  # (N, C)
    flat = logits.float().reshape(-1, logits.shape[-1]).log_softmax(-1)
    drawn = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator).to(flat.device)
    return flat.gather(-1, drawn).sum()


def saliency(
    model: PreTrainedModel,
    paths: Sequence[str],
    batches: Sequence[Batch],
    *,
    groups: Mapping[str, int] | None = None,
    probes: int = 1,
    seed: int = 0,
    scalar: Scalar = probe,
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Tensor]:
    """Saliency of the input features of the modules at ``paths``: mean over texts of (Σ_{tokens, features} a ∂s/∂a)².

    Args:
        paths: output projections: of a feed-forward network (features are neurons) or of attention (groups are heads).
        groups: for a path, into how many groups of neighbouring features its input falls; by default each feature is
            one.
        probes: random directions per batch; more of them, less noise.
        scalar: what is derived; ``probe`` by default.

    Returns:
        For each path a float64 tensor, (G,) or (I,), on the CPU.

    Raises:
        DataError: CK-D011 for modules that no batch reaches, CK-D016 where no gradient comes back.
    """
    if len(batches) == 0:
        raise DataError("CK-D003", "there are no calibration batches", fix="give calibration data")
    generator = torch.Generator().manual_seed(seed)
    attended = Attended(model)
    sums: dict[str, Tensor] = {}
    texts = 0
    inputs: dict[str, list[Tensor]] = {}

    def hook(path: str) -> PreHook:
        def record(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
            tensor = first_tensor(args, kwargs, path)
            if tensor.requires_grad:
                inputs[path].append(tensor)
                return None
            # Everything before is frozen: the graph begins here.
            tensor = tensor.detach().requires_grad_()
            inputs[path].append(tensor)
            return ((tensor, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): tensor})

        return record

    with evaluating(model), torch.enable_grad(), hooked(model, {path: hook(path) for path in paths}):
        for index, batch in enumerate(batches):
            for _ in range(probes):
                inputs.update({path: [] for path in paths})
                value = scalar(model, batch, generator)
                refuse_unreached([path for path in paths if not inputs[path]])
                for path, change in _changes(value, inputs, groups or {}, attended).items():
                    sums[path] = sums.get(path, torch.zeros(change.shape[1], dtype=torch.float64)) + (change**2).sum(0)
                    inputs[path].clear()
                texts += next(iter(batch.values())).shape[0]
            if progress is not None:
                progress((index + 1) / len(batches), "saliency")
    return {path: total / texts for path, total in sums.items()}


def _changes(
    value: Tensor, inputs: Mapping[str, Sequence[Tensor]], groups: Mapping[str, int], attended: Attended
) -> dict[str, Tensor]:
    """Σ a ∂s/∂a for each text and group, (B, G) float64; a module that ran several times counts each time."""
    flat = [(path, tensor) for path, tensors in inputs.items() for tensor in tensors]
    if not value.requires_grad:
        raise _no_gradient(flat[0][0])
    gradients = torch.autograd.grad(value, [tensor for _, tensor in flat], allow_unused=True)
    found: dict[str, Tensor] = {}
    for (path, tensor), gradient in zip(flat, gradients, strict=True):
        if gradient is None:
            raise _no_gradient(path)
        count = groups.get(path, tensor.shape[-1])
        product = attended.by_text(path, tensor.detach().double() * gradient.double()).cpu()  # (B, T, I)
        change = product.reshape(product.shape[0], -1, count, product.shape[-1] // count).sum((1, 3))
        found[path] = found.get(path, torch.zeros_like(change)) + change
    return found


def _no_gradient(path: str) -> DataError:
    return DataError(
        "CK-D016",
        "no gradient comes back to this module",
        where=path,
        why="a layer behind it rounds its input, or the model's output doesn't depend on it",
        fix="take this step before quantization, or use another criterion",
    )
