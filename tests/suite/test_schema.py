from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.errors import CompressKitError
from compresskit.suite.schema import ProfileSettings, SuiteFile, load

SHORT = """version: 1
name: small
models: {tiny: some/folder}
recipes:
  int8: {steps: [{quantization.int8: {activations: token}}]}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_said_in_one_place(tmp_path: Path) -> None:
    suite = load(written(tmp_path, SHORT))
    assert suite.file.engines == ["torch", "onnxruntime"]
    assert suite.file.profile == "quick"
    assert suite.file.measure == "each"
    assert list(suite.recipes) == ["int8"]
    assert suite.tasks == []


def test_data_are_found_from_the_suites_folder(tmp_path: Path) -> None:
    text = SHORT + "tasks: [{task: sts, data: ../pairs.tsv}, {task: classification, data: 'hub:a#b', train: /t.tsv}]\n"
    first, second = load(written(tmp_path, text)).tasks
    assert first.data == str(tmp_path.parent / "pairs.tsv")
    assert (second.data, second.train) == ("hub:a#b", "/t.tsv")


def test_a_recipe_may_be_a_file_beside_the_suite_or_a_shipped_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("version: 1\nsteps: [{pruning.ffn: {keep: 0.5}}]\n")
    text = SHORT.replace("  int8: {steps: [{quantization.int8: {activations: token}}]}", "  a: mine.yaml\n  b: int8")
    suite = load(written(tmp_path, text))
    assert [step.method.full_name() for step in suite.recipes["a"].steps] == ["pruning.ffn"]
    assert [step.method.full_name() for step in suite.recipes["b"].steps] == ["quantization.int8"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (("version: 1", "version: 2"), "CK-R050", "version"),
        (("name: small", "nmae: small"), "CK-R050", "name"),
        (("name: small", "name: ../../etc"), "CK-R050", "name"),
        (("models: {tiny: some/folder}", "models: {}"), "CK-R050", "models"),
        (("models: {tiny: some/folder}", "models: {../up: x}"), "CK-U040", "name"),
        (("int8: {steps", "int8: {stepz"), "CK-R010", "stepz"),
        (("int8: {steps: [{quantization.int8: {activations: token}}]}", "int8: 3"), "CK-R050", "neither"),
        (("version: 1", "version: 1\nengines: [tensorrt]"), "CK-R050", "engines"),
        (("version: 1", "version: 1\nprofile: endless"), "CK-U040", "endless"),
        (("version: 1", "version: 1\nprofile: {replicates: 0}"), "CK-R050", "replicates"),
        (("version: 1", "version: 1\ntasks: [{task: poetry, data: a}]"), "CK-U040", "poetry"),
        (("version: 1", "version: 1\ntasks: [{task: sts}]"), "CK-R050", "data"),
        (("version: 1", "version: 1\npeers: [nobody]\nmeasure: together"), "CK-U040", "nobody"),
        (("version: 1", "version: 1\npeers: [ort-dynamic]"), "CK-U040", "together"),
        (("recipes:\n  int8: {steps: [{quantization.int8: {activations: token}}]}", "seed: 0"), "CK-U040", "neither"),
    ],
)
def test_what_is_no_suite_is_refused(tmp_path: Path, change: tuple[str, str], code: str, words: str) -> None:
    assert change[0] in SHORT
    with pytest.raises(CompressKitError) as caught:
        load(written(tmp_path, SHORT.replace(*change)))
    assert caught.value.code == code
    assert words in str(caught.value)


def test_a_mistake_is_shown_in_its_line(tmp_path: Path) -> None:
    with pytest.raises(CompressKitError) as caught:
        load(written(tmp_path, SHORT + "measure: sometimes\n"))
    assert caught.value.where == "suite.yaml:6:10"
    assert "measure: sometimes" in caught.value.excerpt


def test_a_profile_of_ones_own_is_the_harness_profile() -> None:
    profile = ProfileSettings(replicates=3, seconds=1.5, most_blocks=3, least_blocks=4).profile()
    assert profile.replicates == (3, 3)
    assert profile.half_width is None
    assert profile.most_blocks == 4


def test_every_suite_of_the_repository_loads(project_root: Path) -> None:
    found = {path.stem: load(path) for path in sorted((project_root / "benchmarks" / "suites").glob("*.yaml"))}
    assert set(found) == {"minilm-cpu", "openvino", "peers-cpu", "smoke"}
    assert all(suite.file.name == name for name, suite in found.items())
    families = {step.method.family for recipe in found["minilm-cpu"].recipes.values() for step in recipe.steps}
    assert families == {"pruning", "decomposition", "quantization", "sharing", "attention", "distillation"}
    assert len(found["minilm-cpu"].recipes) == 10


def test_a_suites_file_knows_no_other_key() -> None:
    assert SuiteFile.model_config["extra"] == "forbid"
