"""What modules.json and the files that it names say, in their old and new forms."""

from __future__ import annotations

from typing import Any

import pytest

from compresskit.checkpoint.sentence_transformer import SentenceTransformerFiles, describe
from compresskit.errors import CompressKitError, ModelError, SecurityError

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."


def modules(*kinds: str, prefix: str = OLD) -> list[dict[str, Any]]:
    return [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": prefix + kind}
        for index, kind in enumerate(kinds)
    ]


def read(files: dict[str, Any], **options: Any) -> SentenceTransformerFiles | None:
    return describe(files.get, "folder", **options)


def test_another_kind_of_model() -> None:
    assert read({}) is None


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls+mean"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["cls", "max"]}, "cls+max"),
    ],
)
def test_pooling(config: dict[str, Any], pooling: str) -> None:
    found = read({"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": config})
    assert found is not None
    assert (found.pooling, found.normalize, found.folders) == (pooling, False, ("1_Pooling",))


def test_the_whole_description() -> None:
    found = read(
        {
            "modules.json": modules("Transformer", "Pooling", "Dense", "Normalize", prefix=NEW),
            "1_Pooling/config.json": {"pooling_mode": "cls", "embedding_dimension": 384},
            "sentence_bert_config.json": {"max_seq_length": 256},
        }
    )
    folders = ("1_Pooling", "2_Dense", "3_Normalize")
    assert found == SentenceTransformerFiles(
        "cls", True, 256, 384, ("Transformer", "Pooling", "Dense", "Normalize"), folders
    )


@pytest.mark.parametrize(
    "files",
    [
        {"modules.json": {}},
        {"modules.json": []},
        {"modules.json": ["x"]},
        {"modules.json": [{"path": "", "type": 3}]},
        {"modules.json": [{"path": "", "type": "a b"}]},
        {"modules.json": modules("Transformer", "Pooling")},
        {"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": {"pooling_mode": "sum"}},
        {"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": {"pooling_mode": 1}},
        {"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": {}},
        {
            "modules.json": modules("Transformer", "Pooling"),
            "1_Pooling/config.json": {"pooling_mode": "cls", "embedding_dimension": "384"},
        },
        {"modules.json": modules("Transformer"), "sentence_bert_config.json": {"max_seq_length": -1}},
        {"modules.json": [{"path": "0_Transformer", "type": OLD + "Transformer"}]},
    ],
    ids=range(12),
)
def test_malformed_files(files: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as raised:
        read(files)
    assert raised.value.code == "CK-M021"


def test_a_class_of_somebody_else() -> None:
    files = {"modules.json": [{"path": "", "type": "evil.module.Model"}]}
    with pytest.raises(SecurityError) as raised:
        read(files)
    assert raised.value.code == "CK-S004"
    assert read(files, trusted=True) is not None


@pytest.mark.parametrize("path", ["../x", "/x", "a\\b", 3])
def test_a_module_outside_the_folder(path: Any) -> None:
    with pytest.raises(CompressKitError) as raised:
        read({"modules.json": [*modules("Transformer"), {"path": path, "type": OLD + "Dense"}]})
    assert raised.value.code == "CK-S003"
