"""A BiLSTM classifier in 8 bits: sizes of the checkpoint and the ONNX files, and how far its outputs move.

    python -m benchmarks.recurrent_int8 [--steps 120] [--write]

The model: 30,000 word vectors of 300, two bidirectional layers of 256, six classes; 11.7 million weights. It learns
to tell the six kinds of built-in text apart (words hashed to rows), which takes a minute. Each arm is applied to the
trained model, saved, loaded again and exported; outputs are those of held-out texts, as logits and as probabilities.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch.nn import functional as F

from benchmarks.midtd import store
from compresskit import registry
from compresskit.bench.environment import capture
from compresskit.calibrate.text import builtin_texts
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.checkpoint.source import open_source
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.export import export_onnx
from compresskit.export.parity import session
from compresskit.export.trace import Profile
from compresskit.models.recurrent import RecurrentForSequenceClassification
from compresskit.models.settings import RecurrentConfig

RESULT = Path(__file__).parent / "results" / "recurrent_int8.json"
KINDS = ("documentation", "docstrings", "messages", "sentences", "questions", "passages")
SIZES = {"vocab_size": 30_000, "word_size": 300, "hidden": 256, "layers": 2}
LENGTH, BATCH, TRAIN, HELD = 32, 32, 400, 100
Steps = Sequence[tuple[str, dict[str, Any]]]
TABLE = ("quantization.embedding", {"bits": 8})
ARMS: dict[str, Steps] = {
    "int8": (("quantization.int8", {}), TABLE),
    "rtn 8, a scale a row": (("quantization.rtn", {"bits": 8, "per": "channel"}), TABLE),
}


def rows(texts: Sequence[str], words: int) -> dict[str, torch.Tensor]:
    """Ids (B, ``LENGTH``) and mask; 0 is padding."""
    ids = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for number, text in enumerate(texts):
        found = [1 + zlib.crc32(word.encode()) % (words - 1) for word in re.findall(r"\w+|[^\w\s]", text.lower())]
        ids[number, : len(found[:LENGTH])] = torch.tensor(found[:LENGTH])
    ids[:, 0].clamp_(min=1)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def labelled(split: Any, each: int, words: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Up to ``each`` texts of every kind, with its number."""
    texts = [builtin_texts(each, 0, split=split, kinds=[kind]) for kind in KINDS]
    labels = torch.tensor([number for number, some in enumerate(texts) for _ in some])
    return rows([text for some in texts for text in some], words), labels


def trained(sizes: dict[str, int], steps: int, each: int = TRAIN) -> RecurrentForSequenceClassification:
    """The classifier of seed 0 after ``steps`` of Adam."""
    torch.manual_seed(0)
    model = RecurrentForSequenceClassification(RecurrentConfig(cell="lstm", num_labels=len(KINDS), **sizes)).train()
    batch, labels = labelled("calibration", each, sizes["vocab_size"])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    choice = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (BATCH,), generator=choice)
        loss = F.cross_entropy(model(**{key: value[chosen] for key, value in batch.items()}).logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def file_bytes(folder: Path) -> int:
    """Bytes of weights and graphs in ``folder``."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".onnx", ".data"))


def differences(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Largest and mean differences of logits, largest of probabilities, and how often the first choices agree."""
    change = (found - expected).abs()
    shares = (found.softmax(-1) - expected.softmax(-1)).abs()
    agreed = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    return {
        "logits_max": float(change.max()),
        "logits_mean": float(change.mean()),
        "probabilities_max": float(shares.max()),
        "probabilities_mean": float(shares.mean()),
        "agreement": float(agreed),
    }


@torch.no_grad()
def measure(model: RecurrentForSequenceClassification, held: dict[str, torch.Tensor], folder: Path,
            arms: dict[str, Steps]) -> dict[str, Any]:  # fmt: skip
    """Sizes relative to float32, and differences, of every arm: its checkpoint and its files of two profiles."""
    model.save_pretrained(folder / "fp32")
    source = open_source(str(folder / "fp32"))
    export_onnx(model, folder / "fp32-onnx" / "model.onnx", profile="portable")
    whole = {"checkpoint": file_bytes(folder / "fp32"), "onnx": file_bytes(folder / "fp32-onnx")}
    expected = model(**held).logits
    found: dict[str, Any] = {"fp32": {"bytes": whole, "logits_largest": float(expected.abs().max())}}
    for number, (arm, steps) in enumerate(arms.items()):
        small = copy.deepcopy(model)
        for name, options in steps:
            method = registry.method(name).model_validate(options)
            method.apply(small, resolve(small, method).sites, Context())
        saved = folder / str(number)
        save_checkpoint(small, saved, source=source)
        again = load_model(saved)
        row = {"checkpoint": {"share": round(file_bytes(saved) / whole["checkpoint"], 4)}}
        row["checkpoint"] |= differences(again(**held).logits, expected)
        for profile in get_args(Profile):
            if profile == "static":
                continue
            target = folder / f"{number}-{profile}" / "model.onnx"
            export_onnx(small, target, profile=profile)
            run = session(target, threads=1)
            logits = run.run(None, {each.name: held[each.name].numpy() for each in run.get_inputs()})[0]
            row[f"onnx {profile}"] = {"share": round(file_bytes(target.parent) / whole["onnx"], 4)}
            row[f"onnx {profile}"] |= differences(torch.from_numpy(logits), expected)
        found[arm] = row
        print(arm, json.dumps(row), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = trained(SIZES, given.steps)
    held, labels = labelled("heldout", HELD, SIZES["vocab_size"])
    with torch.no_grad():
        accuracy = float((model(**held).logits.argmax(-1) == labels).float().mean())
    print(f"accuracy on {len(labels)} held-out texts: {accuracy:.3f}", flush=True)
    environment = capture(device="cpu")
    content: dict[str, Any] = {"sizes": SIZES, "steps": given.steps, "accuracy": accuracy, "texts": len(labels)}
    content["environment"] = {"cpu": environment.cpu["model"], "packages": environment.packages, "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        content["rows"] = measure(model, held, Path(folder), ARMS)
    if given.write:
        store(RESULT, content)


if __name__ == "__main__":
    main()
