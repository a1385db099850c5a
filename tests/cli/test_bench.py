"""The verbs of ``bench``: output, files, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compresskit.bench import record
from compresskit.bench.doctor import write_probe
from compresskit.cli.main import main
from tests.bench.records import make


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    content: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return content


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Records before and after: int8 became faster and smaller."""
    paths = tmp_path / "a.json", tmp_path / "b.json"
    record.write(make({"m": 1.0}, sizes={"m": 1000}), paths[0])
    record.write(make({"m": 0.8}, sizes={"m": 250}, seed=1), paths[1])
    return str(paths[0]), str(paths[1])


def test_run_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe, output = str(write_probe(tmp_path / "probe.onnx")), tmp_path / "out.json"
    arguments = ["bench", "run", probe, probe, "--length", "4", "-o", str(output)]
    assert main([*arguments, "--json", "-q"]) == 0
    found = answer(capsys)
    assert found["schema"] == record.FORMAT
    assert "blocks" not in found
    assert record.read(output).complete
    assert main([*arguments, "--resume", "-q"]) == 0
    text = capsys.readouterr().out
    assert "BASELINE" in text
    assert "noise: the baseline against itself" in text
    assert "not measured:" in text
    assert main(["bench", "compare", str(output), str(output), "--gate", "size<=1.0x"]) == 0


@pytest.mark.parametrize(
    ("gates", "more", "status"),
    [
        ([], [], 0),
        (["p50<=-10%", "size<=0.30x"], [], 0),
        (["p50<=-30%"], [], 1),
        (["size<=0.20x"], [], 1),
        (["p50<=-20%"], [], 0),
        (["p50<=-20%"], ["--strict"], 1),
        (["quality>=-0.5pp"], [], 1),
        (["nonsense"], [], 2),
    ],
)
def test_compare_exit_statuses(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str], gates: list[str], more: list[str], status: int
) -> None:
    words = [word for gate in gates for word in ("--gate", gate)]
    assert main(["bench", "compare", *pair, *words, *more]) == status
    capsys.readouterr()


def test_compare_forms(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", *pair, "--gate", "size<=0.2x", "--json"]) == 1
    found = answer(capsys)
    assert found["passed"] is False
    assert main(["bench", "compare", *pair, "--md"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("| model | what | before | after | ratio | verdict |")
    assert "FASTER" in text


def test_records_of_two_machines(tmp_path: Path, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "c.json"
    record.write(make({"m": 0.5}, cpu={"model": "y"}), other)
    assert main(["bench", "compare", pair[0], str(other), "--gate", "p50<=-10%"]) == 3
    assert "CK-B031" in capsys.readouterr().err
    assert main(["bench", "compare", pair[0], str(other), "--gate", "p50<=-10%", "--allow-env-diff"]) == 0
    text = capsys.readouterr().out
    assert "CROSS-MACHINE" in text
    assert "FASTER" not in text


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"schema": "compresskit.bench/9.0"}', "\x00\xff", "NaN", "1e309"]
)
def test_what_is_no_record_exits_3(
    tmp_path: Path, pair: tuple[str, str], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert main(["bench", "compare", pair[0], str(path)]) == 3
    assert "CK-B010" in capsys.readouterr().err


def test_hostile_names_are_inert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b]8;;http://x\x07<img src=x onerror=y>|`*\x1b[31m"
    path = tmp_path / "x.json"
    record.write(make({name: 1.0}), path)
    assert main(["bench", "compare", str(path), str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["bench", "compare", str(path), str(path), "--md"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "<img" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "x", "--profile", "forever"],
        ["run", "x", "--scenario", "dance"],
        ["run", "x", "--threads", "two"],
        ["run", "x", "--threads", "0"],
        ["run", "x", "--resume"],
        ["run", "x", "--task", "sts"],
        ["run", "x", "--device", "tpu"],
        ["run"],
        ["scale", "x", "--plot", "x.exe"],
    ],
)
def test_impossible_options_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    capsys.readouterr()


def test_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe, plot = str(write_probe(tmp_path / "probe.onnx")), tmp_path / "plot.svg"
    assert main(["bench", "scale", probe, "--length", "8,32", "--plot", str(plot), "--json", "-q"]) == 0
    (fit,) = answer(capsys)["fits"]  # type: ignore[misc]
    assert [point["at"] for point in fit["points"]] == [8, 32]
    assert 0 < fit["exponent"] < 2.5
    assert plot.stat().st_size > 1000


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "doctor", "--seconds", "0.5"]) == 0
    assert "the same work against itself" in capsys.readouterr().out


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "bench"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(record.json_schema()))
