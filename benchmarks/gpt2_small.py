"""Trains a small GPT-2 on Python's own documentation, for the benchmarks of language models: no download, minutes.

    python -m benchmarks.gpt2_small OUTPUT [--data TEXTS] [--steps 1200]

The model: 4 layers, width 256, 4 heads, 128 positions, the head tied to a byte-level BPE of 4,096 tokens that is
trained first; 4.2 million parameters. It reads about 1.2 million tokens in the language reference and the docstrings
of the standard library (the built-in calibration texts), or in the texts of ``--data`` (.txt, .tsv, .csv, .jsonl, also
with .gz behind), whose last tenth isn't trained on. OUTPUT is an ordinary checkpoint with tokenizer, ``training.json``
(settings, seconds of processor time, losses) and ``heldout.jsonl``/``train.jsonl``, the texts; nothing there is meant
to be committed. One thread, seed 0: the same model again on the same machine, with the same versions.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F

from compresskit.calibrate.sources import load_texts
from compresskit.calibrate.text import builtin_texts

KINDS = ("documentation", "docstrings")
END = "<|endoftext|>"
SHAPE = {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 128}
VOCABULARY = 4096
BATCH = 8
RATE = 2e-3
WARMUP = 0.05


def texts_of(data: Path | None, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts to train on and texts held out, each shuffled; of a file the last tenth of its rows is held out."""
    if data is not None:
        rows = load_texts(data)
        cut = max(1, len(rows) // 10)
        return rows[:-cut], rows[-cut:]
    sizes = {"calibration": 5400, "heldout": 960}
    train, held = (
        builtin_texts(count, seed, split=split, kinds=KINDS)  # type: ignore[arg-type]
        for split, count in sizes.items()
    )
    return train, held


def tokenizer_of(texts: Sequence[str], size: int = VOCABULARY) -> hf.PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, learned from ``texts``."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=size, min_frequency=2, special_tokens=[END], show_progress=False)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, unk_token=END, pad_token=END
    )


def stream(texts: Sequence[str], tokenizer: Any) -> torch.Tensor:
    """All token ids in a row, (N,), each text begun by the end mark."""
    ids: list[int] = []
    for text in texts:
        ids.append(tokenizer.bos_token_id)
        ids.extend(tokenizer(text)["input_ids"])
    return torch.tensor(ids)


def model_of(vocabulary: int, end: int, shape: dict[str, int] | None = None) -> hf.GPT2LMHeadModel:
    """The untrained model; no dropout, since no text is read often."""
    config = hf.GPT2Config(
        vocab_size=vocabulary,
        bos_token_id=end,
        eos_token_id=end,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **(shape or SHAPE),
    )
    return hf.GPT2LMHeadModel(config)


def train(model: Any, ids: torch.Tensor, steps: int, batch: int, rate: float, seed: int) -> list[float]:
    """AdamW with a cosine rate on random windows of ``ids``, products in bfloat16; the loss of every tenth of it."""
    choice = torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    warmup = max(1, round(steps * WARMUP))

    def share(step: int) -> float:
        fallen = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))
        return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * fallen)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    length, losses = model.config.n_positions, []
    model.train()
    for step in range(steps):
        starts = torch.randint(0, len(ids) - length, (batch,), generator=choice)
        rows = torch.stack([ids[start : start + length] for start in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            losses.append(round(loss.item(), 4))
            print(f"{time.strftime('%X')} step {step}: {losses[-1]}", flush=True)
    model.eval()
    return losses


def build(output: Path, data: Path | None, steps: int, seed: int = 0, size: int = VOCABULARY) -> dict[str, Any]:
    """Train and write everything to ``output``; returns what ``training.json`` says."""
    torch.manual_seed(seed)
    read, held = texts_of(data, seed)
    began = time.process_time()
    tokenizer = tokenizer_of(read, size)
    model = model_of(len(tokenizer), tokenizer.bos_token_id)
    ids = stream(read, tokenizer)
    losses = train(model, ids, steps, BATCH, RATE, seed)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    for name, texts in (("train", read), ("heldout", held)):
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (output / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    told = {
        "data": "built-in " + " and ".join(KINDS) if data is None else data.name,
        "texts": len(read),
        "tokens": len(ids),
        "shape": SHAPE,
        "vocabulary": len(tokenizer),
        "parameters": model.num_parameters(),
        "steps": steps,
        "batch": BATCH,
        "tokens_read": steps * BATCH * SHAPE["n_positions"],
        "rate": RATE,
        "seed": seed,
        "losses": losses,
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    (output / "training.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, help="a file of texts to train on instead")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(build(given.output, given.data, given.steps, given.seed), indent=1))


if __name__ == "__main__":
    main()
