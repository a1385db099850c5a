"""Recipes as users write them: one meaning in every form, every mistake at once, each with its place."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.errors import RecipeError, RecipeErrors
from compresskit.recipe import Calibration, Gate, Recipe, Step
from tests.recipe.conftest import Toy, Trainer

FULL = """\
version: 1
model: some/model
calibration: {data: builtin, samples: 64, max_length: 32}
data: {train: train.tsv, text: sentence}
teacher: other/model
steps:
  - pruning.toy:
      keep: 0.75
      criterion: wanda
      groups: [[1, 2], [3, 4]]
      targets: ["encoder.layer.*"]
      recover: {distillation.toy: {steps: 20, lr: 1e-4}}
  - pruning.toy
  - pruning.toy:
evaluate: {task: sts, data: stsb.tsv}
gates: {quality: ">= -1.0pp", latency.p50: "<= 0.60x"}
export: {onnx: {profile: fast}}
"""


def errors_of(text: str | dict[str, Any]) -> list[RecipeError]:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_text(text, "r.yaml") if isinstance(text, str) else Recipe.load(text)
    assert caught.value.exit_code == 2
    return caught.value.errors if isinstance(caught.value, RecipeErrors) else [caught.value]


def error_of(text: str | dict[str, Any]) -> RecipeError:
    found = errors_of(text)
    assert len(found) == 1, found
    return found[0]


def test_full_recipe() -> None:
    recipe = Recipe.from_text(FULL, "r.yaml")
    first = Toy(keep=0.75, criterion="wanda", groups=((1, 2), (3, 4)), targets=("encoder.layer.*",))
    assert recipe.steps == (Step(first, Trainer(steps=20, lr=1e-4)), Step(Toy()), Step(Toy()))
    assert [step.place for step in recipe.steps] == ["r.yaml:7:5", "r.yaml:13:5", "r.yaml:14:5"]
    assert recipe.calibration == Calibration(data="builtin", samples=64, max_length=32)
    assert recipe.data is not None
    assert (recipe.data.train, recipe.data.text, recipe.data.label) == ("train.tsv", "sentence", "label")
    assert recipe.gates == (Gate("quality", ">=", -1.0, "pp"), Gate("latency.p50", "<=", 0.6, "x"))
    assert (recipe.model, recipe.teacher) == ("some/model", "other/model")
    assert recipe.export is not None
    assert recipe.export.onnx is not None


def test_yaml_json_python_and_objects_mean_the_same(tmp_path: Path) -> None:
    wanted = Recipe.from_text(FULL)
    content = wanted.to_dict()
    (tmp_path / "r.yaml").write_text(FULL)
    (tmp_path / "r.json").write_text(json.dumps(content, indent="\t"))
    step = wanted.steps[0]
    objects = {**content, "steps": [step, Toy(), {"pruning.toy": Toy()}]}
    forms: list[Any] = [tmp_path / "r.yaml", str(tmp_path / "r.json"), content, wanted, objects]
    assert [Recipe.load(form) for form in forms] == [wanted] * len(forms)
    assert Recipe(steps=(Toy(keep=0.5),)).steps == Recipe.load({"steps": ["pruning.toy"]}).steps
    with_recovery = {"pruning.toy": {"keep": 0.5, "recover": Trainer()}}
    assert Recipe.load({"steps": [with_recovery]}).steps == (Step(Toy(), Trainer()),)


def test_resolved_form_round_trips_and_says_every_option() -> None:
    recipe = Recipe.from_text(FULL)
    text = recipe.to_yaml()
    assert Recipe.from_text(text) == recipe
    assert Recipe.from_text(text).to_yaml() == text
    options = recipe.to_dict()["steps"][1]["pruning.toy"]
    assert options == {"keep": 0.5, "criterion": "magnitude", "refit": False, "rank": "auto"}


def test_every_mistake_at_once() -> None:
    text = """\
version: 1
calibration: {samples: 0, maxlength: 3}
stepz: []
steps:
  - pruning.toy: {keep: 1.5, criterion: wand, keeep: 2}
  - prunning.toy
  - pruning.toy: {recover: pruning.toy}
  - pruning.toy: {keep: 0.5}
    keep: 0.5
  - distillation.toy: {lr: "1e-4"}
gates: {size: "<= 0.25"}
"""
    found = {(error.code, error.where) for error in errors_of(text)}
    assert found == {
        ("CK-R010", "r.yaml:3:1"),
        ("CK-R012", "r.yaml:2:24"),
        ("CK-R010", "r.yaml:2:27"),
        ("CK-R015", "r.yaml:11:15"),
        ("CK-R012", "r.yaml:5:25"),
        ("CK-R012", "r.yaml:5:41"),
        ("CK-R010", "r.yaml:5:47"),
        ("CK-R011", "r.yaml:6:5"),
        ("CK-R014", "r.yaml:7:28"),
        ("CK-R013", "r.yaml:8:5"),
        ("CK-R012", "r.yaml:10:28"),
    }


def test_f37_unknown_key_with_the_closest_one() -> None:
    error = error_of("steps:\n  - pruning.toy: {kep: 0.5}\n")
    assert (error.code, error.where, error.fix) == ("CK-R010", "r.yaml:2:19", "did you mean 'keep'?")
    assert error.excerpt == "   |\n 2 |   - pruning.toy: {kep: 0.5}\n   |                   ^^^"
    assert "unknown key 'kep' in pruning.toy" in str(error)
    far = error_of("steps: [{pruning.toy: {zzz: 1}}]")
    assert "keep" in far.fix
    assert "recover" in far.fix


@pytest.mark.parametrize(
    ("options", "at", "words"),
    [
        ("{keep: 0}", "0", "`keep` of pruning.toy must be greater than 0, not 0"),
        ("{keep: yes}", "yes", "`keep` of pruning.toy must be a number, not 'yes'"),
        ("{keep: '0.5'}", "'0.5'", "must be a number, not '0.5'"),
        ("{keep: true}", "true", "must be a number, not True"),
        ("{refit: 1}", "1", "must be true or false, not 1"),
        ("{rank: many}", "many", "must be an integer or 'auto', not 'many'"),
        ("{groups: [[1], [x]]}", "x", "`groups[1][0]` of pruning.toy must be an integer, not 'x'"),
        ("{groups: 3}", "3", "must be a list, not 3"),
        ("{targets: 3}", "3", "must be a list, not 3"),
        ("{refit: true, keep: 1.0}", "pruning.toy", "refit needs keep below 1"),
        ("[1]", "[1]", "the options of pruning.toy are a mapping, not a list"),
        ("0.5", "0.5", "the options of pruning.toy are a mapping, not a number"),
    ],
)
def test_f38_bad_values(options: str, at: str, words: str) -> None:
    text = f"steps: [{{pruning.toy: {options}}}]"
    error = error_of(text)
    assert (error.code, error.where) == ("CK-R012", f"r.yaml:1:{text.rindex(at) + 1}")
    assert words in error.what
    assert error.excerpt.endswith("^" * len(at))


def test_f38_unknown_method_with_the_closest_one() -> None:
    error = error_of("steps: [pruning.toyy]")
    assert error.code == "CK-R011"
    assert "pruning.toy" in error.fix


def test_f38_small_exponents_are_numbers() -> None:
    step = Recipe.from_text("steps: [{distillation.toy: {lr: 1e-4}}]").steps[0]
    assert step.method == Trainer(lr=0.0001)


def test_an_option_of_another_profile_is_found_before_the_work() -> None:
    text = "version: 1\nsteps: [pruning.toy]\nexport:\n  onnx: {profile: fast, min_cosine: 0.99}\n"
    with pytest.raises(RecipeError, match="belongs to `profile: auto`") as caught:
        Recipe.from_text(text, "r.yaml")
    assert (caught.value.code, caught.value.where) == ("CK-R012", "r.yaml:4:9")


def test_an_unknown_task_is_found_before_the_work() -> None:
    error = error_of("steps: [pruning.toy]\nevaluate: {task: stss, data: x.tsv}\n")
    assert (error.code, error.where, error.fix) == ("CK-R012", "r.yaml:2:18", "did you mean 'sts'?")


def test_f44_empty_and_odd_files(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "{}", "version: 1\n", "steps: []\n", "steps:\n"):
        assert error_of(text).code == "CK-R007"
    for text in ("- pruning.toy\n", "pruning.toy\n", "3\n"):
        assert error_of(text).code == "CK-R012"
    body = "steps:\r\n  - pruning.toy: {keep: 0.5}\r\n"
    for number, content in enumerate((b"\xef\xbb\xbf" + body.encode(), body.encode())):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(content)
        assert Recipe.load(path).steps == (Step(Toy()),)


def test_f45_newer_version_is_the_only_complaint() -> None:
    error = error_of("version: 2\nsteps: {new: form}\nwhat: 3\n")
    assert (error.code, error.where) == ("CK-R008", "r.yaml:1:10")
    assert "version 2" in error.what
    for version in ("0", "1.0", "'1'", "true", "x"):
        assert error_of(f"version: {version}\nsteps: [pruning.toy]\n").code == "CK-R012"


@pytest.mark.parametrize(
    "value", ["__import__('os').system('x')", "${env:HF_TOKEN}", "../../plugin.py", "os:system", "!!python/name:os"]
)
def test_s20_values_are_text(value: str) -> None:
    recipe = Recipe.load({"model": value, "steps": [{"pruning.toy": {"targets": [value]}}]})
    assert recipe.model == value
    assert recipe.steps[0].method.targets == (value,)
    assert error_of({"steps": [value]}).code == "CK-R011"


def test_s21_s22_no_regular_expressions_and_no_inclusion() -> None:
    recipe = Recipe.load({"steps": [{"pruning.toy": {"targets": ["(a+)+$"]}}]})
    assert recipe.steps[0].method.targets == ("(a+)+$",)
    for target in ("https://example.org/r.yaml", "/etc/passwd", "r.yaml"):
        error = error_of(f"extends: {target}\nsteps: [pruning.toy]\n")
        assert (error.code, error.where) == ("CK-R010", "r.yaml:1:1")


def test_names_files_and_absence(tmp_path: Path) -> None:
    for source in (tmp_path / "no.yaml", tmp_path, "no-such-recipe"):
        with pytest.raises(RecipeError) as caught:
            Recipe.load(source)
        assert caught.value.code == "CK-R001"
    with pytest.raises(RecipeError) as caught:
        Recipe.load("demoo")
    assert "'demo'" in caught.value.fix


def test_python_data_that_is_not_plain() -> None:
    assert error_of({"steps": [{"pruning.toy": {"keep": object()}}]}).code == "CK-R012"
    assert error_of({"steps": [{"pruning.toy": {"keep": float("nan")}}]}).code == "CK-R012"
    assert error_of({"steps": [object()]}).code == "CK-R013"
    assert error_of({"steps": [{"pruning.toy": {"kep": 1}}]}).where == "recipe: steps[0].pruning.toy.kep"
    cyclic: dict[str, Any] = {}
    cyclic["steps"] = [cyclic]
    assert error_of(cyclic).code == "CK-R002"
    assert Recipe.load({"model": Path("a"), "steps": ({"pruning.toy": {"targets": ("x",)}},)}).model == "a"


def test_all_errors_survive_pickling() -> None:
    with pytest.raises(RecipeErrors) as caught:
        Recipe.from_text("stepz: 1\nmodell: 2\n", "r.yaml")
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  (our own bytes)
    assert [str(error) for error in copied.errors] == [str(error) for error in caught.value.errors]
    assert len(copied.errors) == 3


WORDS = st.sampled_from(
    [
        "version",
        "steps",
        "model",
        "gates",
        "pruning.toy",
        "keep",
        "recover",
        "distillation.toy",
        "calibration",
        "samples",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(-1, 2) | st.text(max_size=4) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300)
@given(st.dictionaries(WORDS, VALUES, max_size=4) | VALUES.map(lambda value: {"steps": [value]}))
def test_any_data_gives_a_recipe_or_typed_errors(content: dict[str, Any]) -> None:
    try:
        recipe = Recipe.load(content)
    except RecipeError:
        return
    assert Recipe.from_text(recipe.to_yaml()) == recipe
