"""The benchmark of GPTQ beside a peer's, without the peer: rows, repeats, checks, and the summary by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from benchmarks import gptq_peer_process, gptq_peers
from benchmarks.gptq_peers import OURS, PEERS, Subject, check_levels, fill, outdated, process
from benchmarks.gptq_peers_table import DEFAULT, summary, table
from benchmarks.language_quantization import Bench
from compresskit import registry
from compresskit.calibrate.batches import tokenize
from tests import models


class Tiny(Subject):
    """A toy Llama, with windows that no text is read for."""

    def windows(self, seed: int, count: int = 4, length: int = 8) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return cast(list[list[int]], torch.randint(3, 20, (count, length), generator=generator).tolist())


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    model, tokenizer = models.tiny("llama", task="lm"), models.tokenizer()
    held = tokenize(["the cat sat on the mat", "a big dog"], tokenizer, model, 16)
    return Tiny(tmp_path, Bench(model, held, held), ["the cat sat", "a dog sat on the mat"])


def test_every_arm_is_run_on_one_calibration_and_kept(tiny: Tiny, tmp_path: Path) -> None:
    jobs: dict[str, list[dict[str, Any]]] = {OURS: [], "peer": []}

    def side(name: str) -> gptq_peers.Ask:
        def ask(job: dict[str, Any]) -> dict[str, Any]:
            jobs[name].append(job)
            zeros = {path: torch.zeros_like(tiny.bench.model.get_submodule(path).weight) for path in job["groups"]}
            save_file(zeros, job["output"])
            return {"cpu_seconds": 1.0, "wall_seconds": 2.0}

        return ask

    content: dict[str, Any] = {"rows": {}}
    output, asks = tmp_path / "out.json", {name: side(name) for name in jobs}
    fill("tiny", tiny, content, output, asks, 1, [4], tmp_path)
    assert json.loads(output.read_text()) == content
    assert [key.split("/")[2] for key in content["rows"]] == [OURS, *PEERS]
    assert len({row["kl"] for row in content["rows"].values()}) == 1
    assert content["rows"]["tiny/4/ours/0"]["kl"] > 0
    assert len(jobs[OURS]) == 2, "a first run warms up"
    assert [job["settings"] for job in jobs["peer"][1:]] == list(PEERS.values())
    assert len({job["ids"] for job in (*jobs[OURS], *jobs["peer"])}) == 1

    fill("tiny", tiny, content, output, asks, 1, [4], tmp_path)
    assert (len(jobs[OURS]), len(jobs["peer"])) == (2, 1 + len(PEERS)), "made again"


def test_a_change_of_ours_leaves_what_the_peer_scored() -> None:
    row = {"kl": 0.1, "perplexity": 3.0, "cpu_seconds": 1.0, "wall_seconds": 2.0}
    assert outdated(row, OURS) == {}
    assert outdated(row, DEFAULT) == {"kl": 0.1, "perplexity": 3.0}


def test_ours_gives_what_its_settings_say(tiny: Tiny, tmp_path: Path) -> None:
    tiny.bench.model.save_pretrained(tmp_path)
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(tiny.windows(0)))
    groups = tiny.groups(group=tiny.bench.model.config.intermediate_size)
    assert set(groups.values()) == {None, tiny.bench.model.config.intermediate_size}
    job = {"model": str(tmp_path), "ids": str(ids), "batch": 2, "bits": 3, "groups": groups, "settings": {}}
    weights = gptq_peers.ours(job)()
    check_levels(weights, groups, 3)
    with pytest.raises(ValueError, match="more than 2 bits"):
        check_levels(weights, groups, 2)
    assert tiny.scores(weights)["kl"] > tiny.scores({})["kl"] == pytest.approx(0, abs=1e-6)
    registry.method(gptq_peers.METHOD).model_validate({"bits": 3, "group": 32})


def test_windows_are_whole_and_differ_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        @staticmethod
        def load_tokenizer() -> Any:
            return models.tokenizer()

    monkeypatch.setattr(gptq_peers, "open_source", lambda _: Source)
    subject = Subject(Path(), cast(Bench, None), [f"the cat number {n} sat on a mat" for n in range(20)])
    one, other = subject.windows(0, 4, 8), subject.windows(1, 4, 8)
    assert [len(row) for row in one] == [8] * 4
    assert one != other
    assert one == subject.windows(0, 4, 8)
    with pytest.raises(ValueError, match="tokens, not 8000"):
        subject.windows(0, 1000, 8)


def test_a_process_answers_and_its_end_is_told() -> None:
    code = "import sys; print(sys.stdin.readline().strip(), flush=True)"
    with process([sys.executable, "-c", code]) as ask:
        assert ask({"bits": 4}) == {"bits": 4}
        with pytest.raises(RuntimeError, match="ended with 0"):
            ask({"bits": 3})
        with pytest.raises(RuntimeError, match="ended with 0"):
            ask({"bits": 2})


def test_what_the_peer_is_asked() -> None:
    groups: dict[str, int | None] = {"a": 32, "b": None, "c": 32}
    found = gptq_peer_process.config_groups(3, groups, "memoryless_mse")
    assert [part["targets"] for part in found.values()] == [["a", "c"], ["b"]]
    of_groups, of_rows = (part["weights"] for part in found.values())
    assert (of_groups["strategy"], of_groups["group_size"], of_rows["strategy"]) == ("group", 32, "channel")
    assert all(part["num_bits"] == 3 and not part["symmetric"] for part in (of_groups, of_rows))
    model = nn.Sequential(Conv1D(6, 4), nn.Tanh())
    inputs: Tensor = torch.randn(3, 4)
    before = model(inputs)
    after = gptq_peer_process.with_linears(model)
    assert isinstance(after.get_submodule("0"), nn.Linear)
    torch.testing.assert_close(after(inputs), before)


def test_the_summary_by_hand() -> None:
    kl = {OURS: (0.2, 0.4), DEFAULT: (0.4, 0.4), "mse none": (0.1, 0.4)}
    rows = {f"m/4/{arm}/{draw}": {"kl": value} for arm, values in kl.items() for draw, value in enumerate(values)}
    told = summary(rows)["m/4"]["kl"]
    assert told["best"] == "mse none"
    assert told["ours_over"]["mse none"] == {"ratio": pytest.approx(2**0.5, abs=1e-4), "draws": [2.0, 1.0]}
    assert told["ours_over"][DEFAULT]["ratio"] == pytest.approx(0.5**0.5, abs=1e-4)
    assert "| m/4 | KL | 0.28284 | 0.4 | 0.2 (mse none) | 0.7071 | 1.4142 | 2.0 1.0 |" in table(summary(rows))
    assert "best" not in summary({"m/4/ours/0": {"kl": 0.2}})["m/4"]["kl"]
