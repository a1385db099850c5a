"""S13 to S16, S23, S24, S32: hostile configs, tokenizers, manifests and names; nothing of them is run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from compresskit.checkpoint import manifest, strict_load
from compresskit.checkpoint.save import verify
from compresskit.checkpoint.source import open_source
from compresskit.errors import CompressKitError, ModelError, SecurityError
from tests import models
from tests.faults.conftest import Folder
from tests.faults.test_model import refused


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def test_s13_code_that_comes_with_a_model(bert: Folder, canary: Path) -> None:
    (bert.path / "modeling.py").write_text(f"import os; os.mkdir({str(canary)!r})")
    bert.json(lambda config: config.update(model_type="mine", auto_map={"AutoModel": "modeling.Model"}))
    error = refused(bert.path, "CK-S004", 6)
    assert "auto_map" in error.where
    assert "--trust-remote-code" in error.fix
    assert not canary.exists()
    with pytest.raises(SecurityError) as raised:
        open_source("owner/name", trust_remote_code=True, revision="main")
    assert raised.value.code == "CK-S008"


@pytest.mark.parametrize(
    "change",
    [
        {"_attn_implementation_internal": "evil/repo"},
        {"text_config": {"_attn_implementation_internal": "evil/repo"}},
        {"nested": [{"deep": {"trust_remote_code": True}}]},
        {"attn_implementation": "evil/repo"},
        {"_attn_implementation": "evil/repo:kernel"},
        {"experts_implementation": "evil/repo"},
        {"custom_pipelines": {"text": {"impl": "evil.Pipeline"}}},
        {"configuration_files": ["config.9.0.0.json"]},
        {"text_config": {"auto_map": {"AutoConfig": "evil--x.C"}}},
        {"use_kernels": True},
    ],
    ids=str,
)
def test_s14_keys_that_have_run_code(bert: Folder, change: dict[str, Any]) -> None:
    refused(bert.json(lambda config: config.update(change)), "CK-S004", 6)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "sentence_bert_config.json"])
def test_s14_the_same_keys_elsewhere(bert: Folder, name: str) -> None:
    (bert.path / name).write_text(json.dumps({"model_args": {"trust_remote_code": True}}))
    refused(bert.path, "CK-S004", 6)


def test_s14_harmless_values_and_vocabularies_pass(bert: Folder) -> None:
    bert.json(lambda config: config.update(trust_remote_code=False, auto_map={}, _attn_implementation="sdpa"))
    (bert.path / "vocab.json").write_text(json.dumps({"auto_map": 5, "my_internal": 6, "use_kernels": 7}))
    open_source(bert.path).load_model()


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("hidden_size", 10**9, "CK-M007"),
        ("num_hidden_layers", 10**7, "CK-M007"),
        ("num_hidden_layers", -1, "CK-M007"),
        ("num_hidden_layers", "3", "CK-M007"),
        ("num_hidden_layers", 3.0, "CK-M007"),
        ("vocab_size", True, "CK-M007"),
        ("max_position_embeddings", 2**40, "CK-M007"),
        ("intermediate_size", 4_000_000, "CK-M007"),
        ("hidden_size", float("nan"), "CK-M006"),
        ("layer_norm_eps", float("nan"), "CK-M006"),
        ("hidden_size", int("9" * 100), "CK-M006"),
    ],
)
def test_s15_absurd_configs(bert: Folder, key: str, value: Any, code: str) -> None:
    started = time.perf_counter()
    refused(bert.json(lambda config: config.update({key: value})), code)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"a": "' + b"x" * 50_000_000 + b'"}', id="50 MB"),
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep"),
        pytest.param(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", id="rather deep"),
        pytest.param(b'{"model_type": "bert", "model_type": "gpt2"}', id="twice"),
        pytest.param(b"\xff\xfe{}", id="no UTF-8"),
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
    ],
)
def test_s15_configs_that_are_none(bert: Folder, content: bytes) -> None:
    (bert.path / "config.json").write_bytes(content)
    refused(bert.path, "CK-M006")


def test_s16_a_template_that_wants_out(bert: Folder, canary: Path, tmp_path: Path) -> None:
    models.tokenizer().save_pretrained(bert.path)
    expression = f"().__class__.__base__.__subclasses__()[0].__init__.__globals__['os'].mkdir({str(canary)!r})"
    (bert.path / "chat_template.jinja").write_text("{{ " + expression + " }}")
    opened = open_source(bert.path)
    tokenizer = opened.load_tokenizer()
    assert tokenizer is not None
    assert tokenizer("good")["input_ids"]
    with pytest.raises(Exception, match=r"unsafe|undefined|access"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert not canary.exists()


@pytest.mark.parametrize(("name", "code"), [("vocab.txt", "CK-M019"), ("tokenizer.json", "CK-M006")])
def test_s16_a_vocabulary_of_a_gigabyte(bert: Folder, name: str, code: str) -> None:
    with (bert.path / name).open("wb") as stream:
        stream.truncate(10**9)
    refused(bert.path, code)


@pytest.mark.parametrize("pattern", ["(a+)+$", "((a*)b)*", "(x+x+)+y", "(?:a{2,})+", "a" * 9000])
def test_s16_patterns_that_explode(bert: Folder, pattern: str) -> None:
    models.tokenizer().save_pretrained(bert.path)
    bert.json(
        lambda content: content.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}}), "tokenizer.json"
    )
    refused(bert.path, "CK-S006", 6)


def test_s16_patterns_of_published_tokenizers_pass(bert: Folder) -> None:
    gpt4 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bloom = r" ?[^(\s|[.,!?…。，、।۔،])]+"
    models.tokenizer().save_pretrained(bert.path)
    parts = [
        {"type": "Split", "pattern": {"Regex": regex}} for regex in (gpt4, bloom, r"\(a+\)+", "[(a+)]+", "(a|b)+c+")
    ]
    bert.json(lambda content: content.update(unused=parts), "tokenizer.json")
    open_source(bert.path)


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"version": "1.0", "model": {"type": "Evil"}}'])
def test_s16_a_broken_tokenizer_is_a_typed_error(bert: Folder, content: str) -> None:
    models.tokenizer().save_pretrained(bert.path)
    (bert.path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError) as raised:
        open_source(bert.path).load_tokenizer()
    assert raised.value.code == "CK-M019"


def add_entry(folder: Folder, path: Any) -> None:
    entry = {"path": path, "size": 1, "sha256": "0" * 64}
    folder.json(lambda content: content["files"].append(entry), manifest.NAME)


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a\\b", "a/../../b", "a//b", "./a", "C:/x", "notes.txt", "Notes.TXT", "manifest.json",
     "notes.txt/inside", "x\0", "\x1b", "", 7, None],
)  # fmt: skip
def test_s23_a_manifest_that_leads_elsewhere(ours: Folder, path: Any) -> None:
    add_entry(ours, path)
    for check in (open_source, verify):
        with pytest.raises(SecurityError) as raised:
            check(ours.path)
        assert (raised.value.code, raised.value.exit_code) == ("CK-S003", 6)


def test_s23_a_listed_file_that_is_a_link(ours: Folder, tmp_path: Path) -> None:
    (ours.path / "notes.txt").unlink()
    (tmp_path / "secret").write_text("x")
    (ours.path / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(SecurityError):
        verify(ours.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format_version=2),
        lambda content: content.update(format_version="1"),
        lambda content: content.update(files={}),
        lambda content: content.update(tools=[]),
        lambda content: content["files"][0].update(size=-1),
        lambda content: content["files"][0].update(size="1"),
        lambda content: content["files"][0].update(sha256="0" * 63),
        lambda content: content["files"][0].update(sha256="G" * 64),
        lambda content: content["files"][0].update(more=1),
        lambda content: content["files"].__setitem__(0, 5),
    ],
)
def test_s23_a_malformed_manifest(ours: Folder, change: Callable[[Any], Any]) -> None:
    refused(ours.json(change, manifest.NAME), "CK-M020")


def test_s24_swapped_between_check_and_use(ours: Folder, bert: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_source(ours.path)
    other = ours.path.parent / "other.safetensors"
    other.write_bytes(ours.weights.read_bytes()[:-1] + b"\x01")
    os.replace(other, ours.weights)
    with pytest.raises(ModelError) as raised:
        opened.load_model()
    assert (raised.value.code, raised.value.exit_code) == ("CK-M017", 3)


def test_s24_swapped_while_it_is_loaded(ours: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_source(ours.path)
    content = ours.weights.read_bytes()
    load = strict_load.load_strict

    def swapping(*arguments: Any, **options: Any) -> Any:
        ours.weights.unlink()
        ours.weights.write_bytes(content[:-1] + b"\x01")
        model = load(*arguments, **options)
        ours.weights.write_bytes(content)  # and back, so that a hash taken later is right
        return model

    monkeypatch.setattr(strict_load, "load_strict", swapping)
    with pytest.raises(ModelError, match="while it was loaded"):
        opened.load_model()


@pytest.mark.parametrize(
    ("spec", "code", "exit_code"),
    [
        ("../../x", "CK-M001", 3),
        ("/no/such/folder", "CK-M001", 3),
        ("a/b/c", "CK-M001", 3),
        ("", "CK-M001", 3),
        ("x\0y", "CK-M001", 3),
        ("file:///etc/passwd", "CK-S007", 6),
        ("http://169.254.169.254/latest", "CK-S007", 6),
        ("https://user:hf_abcdefghijklmnop@huggingface.co/x", "CK-S007", 6),
        ("pkg:no_such_package_at_all", "CK-M022", 3),
        ("pkg:json", "CK-M022", 3),
        ("pkg:../x", "CK-M022", 3),
        ("pkg:os.path", "CK-M022", 3),
        ("pkg:tests/../..", "CK-S003", 6),
        ("pkg:__main__", "CK-M022", 3),
    ],
)
def test_s32_names_that_are_no_models(spec: str, code: str, exit_code: int) -> None:
    with pytest.raises(CompressKitError) as raised:
        open_source(spec)
    assert (raised.value.code, raised.value.exit_code) == (code, exit_code)
    assert "hf_abc" not in str(raised.value)


ANSWER: Any = SimpleNamespace(headers={}, status_code=404, request=SimpleNamespace(url="https://example", method="GET"))


@pytest.mark.parametrize(
    ("failure", "fix"),
    [
        (LocalEntryNotFoundError("no connection, token hf_abcdefghijklmnop"), "go online"),
        (ConnectionError("refused"), "try again"),
        (TimeoutError("slow"), "try again"),
        (RepositoryNotFoundError("404 Client Error", response=ANSWER), "spelling"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_s32_the_hub_does_not_answer(failure: Exception, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as raised:
        open_source("owner/name")
    assert (raised.value.code, raised.value.exit_code) == ("CK-M009", 3)
    assert fix in raised.value.fix
    assert "hf_abc" not in str(raised.value)


def test_s32_only_data_is_fetched(bert: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(bert.path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    opened = open_source("owner/name", revision="v1")
    assert (asked["name"], asked["revision"], opened.spec) == ("owner/name", "v1", "owner/name")
    assert not any(
        pattern.endswith((".py", ".bin", "*")) and pattern != "LICENSE*" for pattern in asked["allow_patterns"]
    )
