"""Models for relation extraction: a file takes the spans of both entities, whichever way the model uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer

from compresskit.bench.inputs import make_work
from compresskit.bench.subjects import Subject
from compresskit.export import export_onnx
from compresskit.tasks.relation_extraction import collate_relations, encode_instances, read_instances
from compresskit.tasks.relation_extraction.build import Kind, new_model
from tests import models
from tests.tasks.relation_extraction.examples import RELATIONS, records, write


@pytest.mark.parametrize("kind", ["bert", "bilstm"])
def test_a_file_sees_where_the_entities_are(kind: Kind, tmp_path: Path) -> None:
    instances = read_instances(write(tmp_path / "data.jsonl", records(9)))
    more: dict[str, Any] = {"filters": 6} if kind == "pcnn" else {}
    if kind == "bert":
        more["encoder"] = models.write_checkpoint(models.tiny("bert"), tmp_path / "encoder")
    model = new_model(kind, instances, RELATIONS, tmp_path / "model", **more).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    export_onnx(model, tmp_path / "model.onnx", tokenizer=tokenizer)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["input_ids", "attention_mask", "head", "tail"]
    batch = collate_relations(encode_instances(instances, tokenizer, 128, marked=kind == "bert"))
    (found,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(**batch).logits.numpy(), atol=1e-5)


def test_what_is_timed_has_entities() -> None:
    kind = "PCNNForRelationExtraction"
    subject = Subject("a", "a", Path("a"), "torch", {"vocab_size": 50}, "", {}, {}, architecture=kind)
    work = make_work(subject, None, "encode", batch=2, length=8, threads=1, new_tokens=2, seed=0)
    assert work.batches[0]["head"].tolist() == [[3, 4], [3, 4]]
    assert work.batches[0]["tail"].tolist() == [[7, 8], [7, 8]]
