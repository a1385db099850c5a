"""The proof in a fresh process: equal bits, and clear errors when that process fails."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from compresskit.checkpoint import prove
from compresskit.checkpoint.load import attach
from compresskit.errors import ModelError
from tests import models
from tests.checkpoint import edits


def test_a_fresh_process_gives_the_same_bits(tmp_path: Path) -> None:
    """Other widths in each layer, shared weights, a replaced attention, sharded, after no more than the import."""
    model = models.tiny("bert", task="classifier")
    edits.uneven_widths(model)
    edits.window(model)
    model.bert.encoder.layer[1].attention.output.dense.weight = model.bert.encoder.layer[
        0
    ].attention.output.dense.weight
    attach(model)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    batches = [models.inputs("bert", padded=True), models.inputs("bert", batch=1, length=5, seed=1)]
    proof = prove.reload_and_run(tmp_path, batches)
    assert len(proof) == 2
    for found, batch in zip(proof, batches, strict=True):
        assert torch.equal(found["logits"], models.output(model, batch))
    assert 10e6 < proof.peak_rss_bytes < 10e9
    assert 0 < proof.load_seconds < 100
    assert 0 < proof.run_seconds < 100


def fake_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Run ``body`` instead of Python, so that a dying process costs no import."""
    path = tmp_path / "child.py"
    path.write_text(f"#!{sys.executable}\nimport os, sys, signal, time\nfolder = sys.argv[3]\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(prove.sys, "executable", str(path))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("print('first'); print('the reason', file=sys.stderr); sys.exit(3)", ("status 3", "the reason", "first")),
        ("os.kill(os.getpid(), signal.SIGKILL)", ("signal 9", "it wrote nothing")),
        ("print('only noise')", ("no readable result", "only noise")),
        ("open(folder + '/result.json', 'w').write('{')", ("no readable result",)),
        ("open(folder + '/result.json', 'w').write('{}')", ("no readable result",)),
    ],
)
def test_failing_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, words: tuple[str, ...]) -> None:
    fake_child(monkeypatch, tmp_path, body)
    with pytest.raises(ModelError) as caught:
        prove.reload_and_run(tmp_path, [])
    assert caught.value.code == "CK-L032"
    assert all(word in str(caught.value) for word in words)


def test_a_process_that_hangs_is_ended_with_all_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = f"""
child = os.fork()
print("still here", file=sys.stderr, flush=True)
open("{tmp_path}/pid-%d" % (child == 0), "w").write(str(os.getpid()))
time.sleep(60)
"""
    fake_child(monkeypatch, tmp_path, body)
    started = time.monotonic()
    with pytest.raises(ModelError, match="still here") as caught:
        prove.reload_and_run(tmp_path, [], timeout=1.5)
    assert caught.value.code == "CK-L033"
    assert time.monotonic() - started < 30
    for name in ("pid-0", "pid-1"):
        assert not still_alive(int((tmp_path / name).read_text()))


def still_alive(process: int) -> bool:
    """Whether it is alive ten seconds on: a killed process that nobody waits for takes a moment to be gone."""
    until = time.monotonic() + 10
    while alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    return alive(process)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_child_ends_if_its_parent_is_gone() -> None:
    process = os.fork()
    if process == 0:
        try:
            prove._die_with_parent(1 << 30)
        except SystemExit:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7


def test_which_outputs_travel() -> None:
    hidden = (torch.zeros(1), torch.ones(1))
    output = BaseModelOutput(last_hidden_state=torch.ones(2), hidden_states=hidden)
    output["past_key_values"] = nn.Identity()
    found = prove.tensors_of(output)
    assert list(found) == ["last_hidden_state", "hidden_states.0", "hidden_states.1"]


def test_the_body_of_the_fresh_process(tmp_path: Path) -> None:
    """The same code in this process, where its coverage and its errors show."""
    import json

    from safetensors.torch import load_file, save_file

    models.tiny("gpt2", task="lm").save_pretrained(tmp_path / "model")
    job = {"output": str(tmp_path / "model"), "inputs": 1, "threads": torch.get_num_threads()}
    (tmp_path / "job.json").write_text(json.dumps(job))
    batch = models.inputs("gpt2")
    save_file(batch, tmp_path / "input-00000.safetensors")
    prove._run_job(tmp_path)
    expected = models.output(models.tiny("gpt2", task="lm"), batch)
    assert torch.equal(load_file(tmp_path / "output-00000.safetensors")["logits"], expected)
    assert json.loads((tmp_path / "result.json").read_text())["peak_rss_bytes"] > 0
