"""The verbs that need no pipeline: schema, recipes, explain, methods, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compresskit import registry
from compresskit.cli import doctor
from compresskit.cli.explain import codes
from compresskit.cli.main import main
from compresskit.recipe.json_schema import json_schema
from compresskit.recipe.library import shipped


def run_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return content


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "recipe"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    assert run_json(["schema"], capsys) == json_schema()
    assert main(["schema", "nothing"]) == 2
    assert "CK-U007" in capsys.readouterr().err


def test_recipes_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    listed = run_json(["recipes", "list"], capsys)["recipes"]
    assert [item["name"] for item in listed] == list(shipped())
    assert main(["recipes", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{item['name']} " in shown and item["summary"] in shown for item in listed)
    assert main(["recipes", "show", "demo"]) == 0
    text = capsys.readouterr().out
    assert text == shipped()["demo"].path.read_text()
    assert main(["recipes", "show", "demoo"]) == 2
    assert "did you mean 'demo'?" in capsys.readouterr().err


def test_recipes_new_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.yaml"
    assert main(["recipes", "new", str(target)]) == 0
    assert target.read_text().endswith(shipped()["demo"].path.read_text())
    assert target.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    target.write_text("precious")
    capsys.readouterr()
    assert main(["recipes", "new", str(target)]) == 2
    assert target.read_text() == "precious"
    assert main(["recipes", "new", str(tmp_path / "absent" / "x.yaml")]) == 4
    assert main(["recipes", "new", str(tmp_path / "y.yaml"), "--from", "absent"]) == 2
    assert not (tmp_path / "y.yaml").exists()


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("CK-R010", "ck-r010", "R010", "error[CK-R010]"):
        assert main(["explain", form]) == 0
        assert capsys.readouterr().out.startswith("CK-R010: unknown key\n\n")
    assert run_json(["explain", "CK-R010"], capsys)["title"] == "unknown key"
    assert set(run_json(["explain"], capsys)["codes"]) == set(codes())
    assert main(["explain", "CK-R01"]) == 2
    assert "did you mean CK-R01" in capsys.readouterr().err


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(["methods"], capsys)["methods"]
    assert [item["method"] for item in found] == list(registry.methods())
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    for item in found:
        assert item["method"] in shown
        assert item["summary"].endswith(".")
        assert all(option["description"] for option in item["options"]), item["method"]
        assert [option["name"] for option in item["options"]][:2] == ["targets", "ignore"]
        assert main(["methods", item["method"]]) == 0
        text = capsys.readouterr().out
        assert all(option["name"] in text for option in item["options"])
    assert main(["methods", "pruning.absent"]) == 2
    assert "CK-R011" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(["doctor"], capsys)
    machine = found["machine"]
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > machine["memory_available_bytes"] > 0
    assert {item["level"] for item in found["verdicts"]} <= {"ok", "note", "warn"}
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"Python {machine['python']}, {machine['processor']}" in shown
    assert len(shown.splitlines()) == len(found["verdicts"])


def test_doctor_sees_old_and_missing_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["numpy>=1.26", "torch<3,>=999.0", "absent-package>=1.0", "bitsandbytes-absent>=0.4; extra == 'gpu'"]
    monkeypatch.setattr(doctor, "_requirements", lambda: lines)
    assert main(["doctor", "--json"]) == 4
    verdicts = json.loads(capsys.readouterr().out.splitlines()[-1])["verdicts"]
    by_text = {item["what"]: item for item in verdicts}
    assert by_text["absent-package is not installed"]["level"] == "fail"
    assert by_text["absent-package is not installed"]["fix"] == "pip install 'absent-package>=1.0'"
    assert [item["level"] for text, item in by_text.items() if "is older than 999.0" in text] == ["fail"]
    assert by_text["extra gpu: bitsandbytes-absent not installed"]["level"] == "note"


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"threads": 64, "cores": 4}, "warn", "64 threads on 4 usable cores"),
        ({"threads": 4, "cores": 4, "cpu_quota": 1.5}, "warn", "4 threads on 1.5 usable cores"),
        ({"memory_available_bytes": 10**9}, "warn", "memory: 1.0 GB free"),
        ({"disk_free_bytes": 10**9}, "warn", "disk: 1.0 GB free"),
        ({"load_1min": 30.0}, "warn", "load average 30.0"),
        ({"flags": ["avx2"]}, "note", "no int8 dot product"),
    ],
)
def test_doctor_verdicts(change: dict[str, Any], level: str, words: str) -> None:
    calm = {
        "python": "3.11.0",
        "processor": "p",
        "flags": ["avx512_vnni"],
        "cores": 4,
        "cpu_quota": None,
        "threads": 4,
        "memory_available_bytes": 10**11,
        "disk_free_bytes": 10**12,
        "load_1min": 0.1,
        "cuda": "H",
    }
    assert {item.level for item in doctor._machine_verdicts(calm)} == {"ok"}
    found = [item for item in doctor._machine_verdicts({**calm, **change}) if item.level != "ok"]
    assert [(item.level, words in item.what) for item in found] == [(level, True)]
