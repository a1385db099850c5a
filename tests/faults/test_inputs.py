"""S01 to S04, S08 to S16, S23, S24, S32: what a hostile model may not achieve; nothing is run or unpickled."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from compresskit.checkpoint import manifest, strict_load
from compresskit.checkpoint.safetensors_header import MOST_HEADER_BYTES, read_header
from compresskit.checkpoint.save import save_checkpoint, verify
from compresskit.checkpoint.source import open_source
from compresskit.errors import CompressKitError, ModelError, SecurityError
from tests import models
from tests.conftest import ROOT
from tests.faults.conftest import Folder
from tests.faults.test_model import refused


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def pickled(canary: Path, protocol: int = 2) -> bytes:
    return pickle.dumps({"weight": Payload(canary)}, protocol=protocol)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pkl"])
def test_s01_weights_as_a_pickle(bert: Folder, canary: Path, name: str) -> None:
    bert.weights.unlink()
    (bert.path / name).write_bytes(pickled(canary))
    assert name in refused(bert.path, "CK-S001", 6).what
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_s02_a_pickle_that_poses_as_safetensors(bert: Folder, canary: Path, protocol: int) -> None:
    bert.weights.write_bytes(pickled(canary, protocol))
    with pytest.raises(CompressKitError) as raised:
        open_source(bert.path)
    assert raised.value.exit_code in (3, 6)
    assert protocol > 3 or raised.value.code == "CK-S002"
    assert not canary.exists()


def test_s02_an_archive_that_poses_as_safetensors(bert: Folder, canary: Path) -> None:
    with zipfile.ZipFile(bert.weights, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
    assert "zip" in refused(bert.path, "CK-S002", 6).what
    assert not canary.exists()


def test_s03_a_pickle_beside_good_weights_is_left_alone(bert: Folder, canary: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        (bert.path / name).write_bytes(pickled(canary))
    opened = open_source(bert.path)
    assert "pytorch_model.bin" in opened.notices[0]
    save_checkpoint(opened.load_model(), tmp_path / "out", source=opened)
    assert not canary.exists()
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".bin", ".pt")] == []


def test_s03_a_module_of_sentence_transformers_as_a_pickle(bert: Folder, canary: Path) -> None:
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (bert.path / "modules.json").write_text(json.dumps(modules))
    (bert.path / "2_Dense").mkdir()
    (bert.path / "2_Dense" / "config.json").write_text("{}")
    (bert.path / "2_Dense" / "pytorch_model.bin").write_bytes(pickled(canary))
    refused(bert.path, "CK-S001", 6)
    assert not canary.exists()


@pytest.mark.parametrize("forced", [False, True])
def test_s04_there_is_no_way_back_to_unpickling(
    bert: Folder, canary: Path, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        refused(bert.path, "CK-S005", 6)
    bert.weights.unlink()
    (bert.path / "pytorch_model.bin").write_bytes(pickled(canary))
    refused(bert.path, "CK-S005" if forced else "CK-S001", 6)
    assert not canary.exists()


def raw(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: Any = (2,), dtype: Any = "F32", offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def header_refused(path: Path, content: bytes, code: str = "CK-M004") -> CompressKitError:
    path.write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(CompressKitError) as raised:
        read_header(path)
    assert raised.value.code == code, str(raised.value)
    assert time.perf_counter() - started < 0.5
    return raised.value


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 0, 1])
def test_s08_absurd_header_lengths(tmp_path: Path, length: int) -> None:
    header_refused(tmp_path / "x.safetensors", raw({"a": entry()}, bytes(8), length=length))


def test_s08_seven_bytes(tmp_path: Path) -> None:
    assert "7 bytes" in header_refused(tmp_path / "x.safetensors", bytes(7)).why


MEASURE = """
import resource, sys, time
from pathlib import Path
from compresskit.checkpoint.safetensors_header import read_header
from compresskit.errors import ModelError
resource.setrlimit(resource.RLIMIT_AS, (500 * 10**6, 500 * 10**6))
for name in sys.argv[1:]:
    started = time.process_time()
    try:
        read_header(Path(name))
    except ModelError as error:
        print(error.code, time.process_time() - started)
"""


def test_s09_huge_headers_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    sizes = {
        "header of 99 MB": raw(b"{", length=99_000_000),
        "metadata of 90 MB": raw(b'{"__metadata__":{"x":"', length=90_000_000),
        "a million tensors": raw(b'{"t0":{"dtype":"F32"', length=67_000_000),
    }
    files = {
        "many tensors": raw(b"{" + b",".join(b'"%d":{}' % number for number in range(230_000)) + b"}"),
        "many lists": raw(b'{"a":[' + b"[]," * 8_000_000 + b"[]]}"),
        "many numbers": raw(b'{"a":[' + b"1," * 12_000_000 + b"1]}"),
        "deep": raw(b'{"a":' + b"[" * 300_000 + b"]" * 300_000 + b"}"),
        "deep objects": raw(b'{"a":' * 150_000 + b"1" + b"}" * 150_000),
        "long number": raw(b'{"a":' + b"1" * 20_000_000 + b"}"),
    }
    paths = []
    for name, content in (sizes | files).items():
        paths.append(tmp_path / f"{name}.safetensors")
        paths[-1].write_bytes(content)
        if name in sizes:
            os.truncate(paths[-1], 100_000_000)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [line.split() for line in ran.stdout.splitlines()]
    assert [code for code, _ in found] == ["CK-M004"] * len(paths)
    assert max(float(seconds) for _, seconds in found) < 1


def test_s09_a_large_but_honest_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({f"layer.{number}.weight": entry((0,), "F32", (0, 0)) for number in range(20_000)}))
    assert len(read_header(path).tensors) == 20_000


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "overlaps"),
        ({"a": entry(), "b": entry(offsets=(0, 8))}, 8, "overlaps"),
        ({"a": entry(), "b": entry(offsets=(16, 24))}, 24, "hole"),
        ({"a": entry(offsets=(8, 16))}, 16, "hole"),
        ({"a": entry()}, 9, "follow the last tensor"),
        ({"a": entry()}, 7, "cut short"),
        ({}, 4, "follow the last tensor"),
        (b'{"a":{},"a":{}}', 0, "twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}', 0, "twice"),
        ({"a": entry(offsets=(-8, 0))}, 0, "begin and end"),
        ({"a": entry(offsets=(8, 0))}, 8, "begin and end"),
        ({"a": entry(offsets=(0, 8, 8))}, 8, "begin and end"),
        ({"a": entry(offsets=(0.0, 8.0))}, 8, "begin and end"),
        ({"a": entry(offsets=(False, True))}, 8, "begin and end"),
        ({"a": entry(shape=(-2, -1))}, 8, "list of sizes"),
        ({"a": entry(shape=(2.0,))}, 8, "list of sizes"),
        ({"a": entry(shape=(2**32, 2**32))}, 8, "2^48"),
        ({"a": entry(shape=(2**62, 4))}, 8, "2^48"),
        ({"a": entry(shape=(2**64,))}, 8, "list of sizes"),
        ({"a": entry(shape=[1] * 17)}, 4, "list of sizes"),
        ({"a": entry(shape=(3,))}, 8, "takes 8 bytes"),
        ({"a": entry(dtype="F31")}, 8, "unknown type"),
        ({"a": entry(dtype=["F32"])}, 8, "unknown type"),
        ({"a": {**entry(), "extra": 1}}, 8, "hasn't dtype"),
        ({"a": [1]}, 8, "hasn't dtype"),
        ({"__metadata__": {"a": 1}}, 0, "metadata"),
        (b'{"a":NaN}', 0, "no JSON"),
        (b'{"a"', 0, "no JSON"),
        (b'{"\xff":1}', 0, "no JSON"),
    ],
)  # fmt: skip
def test_s10_impossible_headers(tmp_path: Path, header: Any, data: int, why: str) -> None:
    assert why in header_refused(tmp_path / "x.safetensors", raw(header, bytes(data))).why


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "a\\b", "a/../b", "nul\0", "\x1b[31m", "right\u202eleft", "", "x" * 513, "n\nl"],
)
def test_s11_tensor_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    error = header_refused(tmp_path / "x.safetensors", raw({name: entry()}, bytes(8)))
    assert error.why.isprintable()


def test_s11_a_name_of_a_megabyte(tmp_path: Path) -> None:
    assert len(str(header_refused(tmp_path / "x.safetensors", raw({"x" * 10**6: entry()}, bytes(8))))) < 600


@pytest.mark.parametrize(
    "target", ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\x.safetensors", "C:x", "x\0y", ""]
)
def test_s12_an_index_that_leads_elsewhere(sharded: Folder, target: str) -> None:
    name = "model.safetensors.index.json"
    sharded.json(lambda index: index["weight_map"].update({next(iter(index["weight_map"])): target}), name)
    refused(sharded.path, "CK-S003", 6)


@pytest.mark.parametrize("kind", ["link", "link to a folder", "device", "pipe", "folder"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_s12_what_is_no_file_inside_the_folder(bert: Folder, tmp_path: Path, name: str, kind: str) -> None:
    path = bert.path / name
    outside = tmp_path / "outside"
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("{}")
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "link to a folder":
        path.symlink_to(tmp_path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    started = time.perf_counter()
    refused(bert.path, "CK-S003", 6)
    assert time.perf_counter() - started < 1


def test_s12_links_inside_the_folder_are_fine(bert: Folder) -> None:
    bert.weights.rename(bert.path / "real.safetensors")
    bert.weights.symlink_to("real.safetensors")
    open_source(bert.path).load_model()


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
    assert MOST_HEADER_BYTES < 10**8
