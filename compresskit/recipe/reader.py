"""From text or Python data to a checked ``Recipe``: all mistakes are collected with their places, raised together."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from compresskit import registry
from compresskit.core.compressor import Compressor
from compresskit.errors import RecipeError
from compresskit.recipe import strict_yaml
from compresskit.recipe.gates import Gate, parse_gate
from compresskit.recipe.library import find
from compresskit.recipe.places import Document, Path, Text, dotted
from compresskit.recipe.schema import KEYS, SECTIONS, VERSION, Evaluation, Recipe, Step, refuse
from compresskit.tasks import named

AnyModel = TypeVar("AnyModel", bound=BaseModel)

_SUFFIXES = (".yaml", ".yml", ".json")
_TEXTS = ("model", "teacher")


def load(source: str | FilePath | Mapping[str, Any] | Recipe) -> Recipe:
    """See :meth:`Recipe.load`."""
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return _Reader(Document(_plain(source), Text("recipe"))).recipe()
    path = FilePath(source)
    if path.suffix.lower() not in _SUFFIXES and not path.exists():
        path = find(str(source))
    text = strict_yaml.read_file(path)
    if path.suffix.lower() == ".json":
        return _Reader(strict_yaml.parse_json(text, str(path))).recipe()
    return from_text(text, str(path))


def from_text(text: str, name: str = "recipe") -> Recipe:
    """See :meth:`Recipe.from_text`."""
    return _Reader(strict_yaml.parse_yaml(text, name)).recipe()


def _plain(value: Any, depth: int = 0) -> Any:
    """Python data with lists for sequences and text for paths; methods and steps stay objects."""
    if depth > strict_yaml.MAX_DEPTH:
        raise RecipeError("CK-R002", f"the recipe is nested deeper than {strict_yaml.MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1) for item in value]
    return str(value) if isinstance(value, FilePath) else value


class _Reader:
    """Walks one document once."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.errors: list[RecipeError] = []

    def recipe(self) -> Recipe:
        """The recipe, or every mistake."""
        data = self.document.data
        if data is None or data == {}:
            raise RecipeError(
                "CK-R007",
                "the recipe is empty",
                where=self.document.text.name,
                fix="it needs `version: 1` and `steps:`; `compresskit recipes new` writes one to start from",
            )
        if not isinstance(data, dict):
            self._wrong((), f"a recipe is a mapping, not {_kind(data)}")
            refuse(self.errors)
        self._check_version(data)
        self._check_keys(data, KEYS, (), "a recipe")
        fields: dict[str, Any] = {key: self._text(data, key) for key in _TEXTS}
        for name, cls in SECTIONS.items():
            if data.get(name) is not None:
                fields[name] = self._model(cls, data[name], (name,))
        self._check_task(fields.get("evaluate"))
        fields["gates"] = self._gates(data)
        fields["steps"] = self._steps(data)
        if self.errors:
            refuse(self.errors)
        return Recipe(**{key: value for key, value in fields.items() if value is not None})

    def _add(self, code: str, what: str, path: Path, *, key: bool = False, why: str = "", fix: str = "") -> None:
        where, excerpt = self.document.locate(path, key=key)
        self.errors.append(RecipeError(code, what, where=where, why=why, fix=fix, excerpt=excerpt))

    def _wrong(self, path: Path, what: str, *, fix: str = "") -> None:
        self._add("CK-R012", what, path, fix=fix)

    def _check_version(self, data: dict[str, Any]) -> None:
        version = data.get("version", VERSION)
        if version == VERSION and type(version) is int:
            return
        if type(version) is int and version > VERSION:
            self._add(
                "CK-R008",
                f"the recipe has version {version}, and this compresskit reads version {VERSION}",
                ("version",),
                fix="upgrade compresskit",
            )
            # What else a newer format allows isn't known, so nothing else is complained of.
            refuse(self.errors)
        self._wrong(("version",), f"`version` must be {VERSION}, not {_short(version)}")

    def _check_keys(self, data: Mapping[str, Any], known: Sequence[str], path: Path, owner: str) -> None:
        for key in data:
            if key not in known:
                self._unknown_key(key, known, (*path, key), owner)

    def _unknown_key(self, key: str, known: Sequence[str], path: Path, owner: str) -> None:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        allowed = f"{owner} has: {', '.join(known)}"
        fix = f"did you mean {close[0]!r}?" if close else allowed
        self._add("CK-R010", f"unknown key {_short(key)} in {owner}", path, key=True, fix=fix)

    def _text(self, data: dict[str, Any], key: str) -> str | None:
        value = data.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            self._wrong((key,), f"`{key}` must be text, not {_short(value)}")
            return None
        return value

    def _check_task(self, settings: Evaluation | None) -> None:
        """The task is looked up now, not after hours of work."""
        if settings is None:
            return
        try:
            named(settings.task)
        except RecipeError as error:
            self._wrong(("evaluate", "task"), error.what, fix=error.fix)

    def _gates(self, data: dict[str, Any]) -> tuple[Gate, ...]:
        raw = data.get("gates")
        if raw is None:
            return ()
        if not isinstance(raw, dict):
            self._wrong(("gates",), "`gates` is a mapping of metrics to bounds", fix='size: "<= 0.25x"')
            return ()
        gates = []
        for metric, text in raw.items():
            try:
                gates.append(parse_gate(metric, text))
            except RecipeError as error:
                self._add(error.code, error.what, ("gates", metric), fix=error.fix)
        return tuple(gates)

    def _steps(self, data: dict[str, Any]) -> tuple[Step, ...]:
        raw = data.get("steps")
        if raw is None or raw == []:
            self._add("CK-R007", "the recipe has no steps", ("steps",), key=True, fix="add at least one method")
            return ()
        if not isinstance(raw, list):
            self._wrong(("steps",), f"`steps` is a list, not {_kind(raw)}", fix="begin each step with `- `")
            return ()
        steps = (self._step(item, ("steps", index)) for index, item in enumerate(raw))
        return tuple(step for step in steps if step is not None)

    def _step(self, raw: Any, path: Path) -> Step | None:
        if isinstance(raw, Step):
            return raw
        if isinstance(raw, Compressor):
            return Step(raw)
        found = self._single(raw, path)
        if found is None:
            return None
        name, options, path = found
        rest, recover = self._split_recovery(options, path)
        method = self._method(name, rest, path)
        if method is None:
            return None
        return Step(method, recover, self.document.locate(path, key=True)[0])

    def _single(self, raw: Any, path: Path) -> tuple[str, Any, Path] | None:
        """A step's method, options and path: ``name``, or ``{name: options}``."""
        if isinstance(raw, str):
            return raw, {}, path
        if isinstance(raw, dict) and len(raw) == 1:
            name = next(iter(raw))
            return name, {} if raw[name] is None else raw[name], (*path, name)
        fix = "write `- pruning.ffn: {keep: 0.75}`, or `- pruning.ffn` for the defaults"
        if isinstance(raw, dict) and raw:
            fix = "indent the options below the method, or put each method into a step of its own"
        count = f", not a mapping of {len(raw)}" if isinstance(raw, dict) else f", not {_kind(raw)}"
        self._add("CK-R013", f"a step is one method with its options{count}", path, fix=fix)
        return None

    def _split_recovery(self, options: Any, path: Path) -> tuple[Any, Compressor | None]:
        if not isinstance(options, dict) or options.get("recover") is None:
            return options, None
        rest = {key: value for key, value in options.items() if key != "recover"}
        found = self._recovery(options["recover"], (*path, "recover"))
        return rest, found

    def _recovery(self, raw: Any, path: Path) -> Compressor | None:
        if isinstance(raw, Compressor):
            method: Compressor | None = raw
        else:
            found = self._single(raw, path)
            if found is None:
                return None
            name, options, path = found
            method = self._method(name, options, path)
        if method is not None and "training" not in type(method).needs:
            self._add(
                "CK-R014",
                f"{method.full_name()} doesn't train, so it repairs nothing",
                path,
                key=path[-1] == method.full_name(),
                fix="recover by a method that trains, such as distillation.embeddings",
            )
            return None
        return method

    def _method(self, name: str, options: Any, path: Path) -> Compressor | None:
        try:
            cls = registry.method(name)
        except RecipeError as error:
            self._add(error.code, error.what, path, key=path[-1] == name, why=error.why, fix=error.fix)
            return None
        return self._model(cls, options, path)

    def _model(self, cls: type[AnyModel], raw: Any, path: Path) -> AnyModel | None:
        owner = cls.full_name() if issubclass(cls, Compressor) else f"`{dotted(path)}`"
        if isinstance(raw, cls):
            return raw
        if not isinstance(raw, dict):
            self._wrong(path, f"the options of {owner} are a mapping, not {_kind(raw)}")
            return None
        try:
            # Validated as JSON, strictly: lists may fill tuples and 1 may fill 1.0, but text is never a number.
            return cls.model_validate_json(json.dumps(raw), strict=True)
        except (TypeError, ValueError) as error:
            if not isinstance(error, ValidationError):
                self._wrong(path, f"the options of {owner} are not plain data", fix=str(error))
                return None
            self._translate(error, cls, raw, path, owner)
            return None

    def _translate(self, error: ValidationError, cls: type[BaseModel], raw: Any, path: Path, owner: str) -> None:
        grouped: dict[Path, list[Any]] = {}
        for item in error.errors(include_url=False):
            grouped.setdefault(_within(item["loc"], raw, item["type"]), []).append(item)
        for inner, items in grouped.items():
            if items[0]["type"] == "extra_forbidden":
                self._unknown_key(str(inner[-1]), _options(_model_at(cls, inner[:-1])), (*path, *inner), owner)
                continue
            name = dotted(inner)
            wanted = " or ".join(dict.fromkeys(_sentence(item["type"], item["msg"]) for item in items))
            wanted = wanted.replace(" or must be ", " or ")
            if items[0]["type"] == "missing":
                self._wrong(path, f"`{name}` of {owner} is missing")
            elif not inner:
                self._add("CK-R012", f"{owner}: {wanted}", path, key=True)
            else:
                got = f", not {_short(items[0]['input'])}" if wanted.startswith("must") else ""
                field = cls.model_fields.get(str(inner[0]))
                help_text = f"{inner[0]}: {field.description}" if field is not None and field.description else ""
                self._wrong((*path, *inner), f"`{name}` of {owner} {wanted}{got}", fix=help_text)


def _options(cls: type[BaseModel]) -> list[str]:
    return [*cls.model_fields, *(["recover"] if issubclass(cls, Compressor) else [])]


def _model_at(cls: type[BaseModel], inner: Path) -> type[BaseModel]:
    """The model class that the field at ``inner`` holds, or ``cls``."""
    for part in inner:
        field = cls.model_fields.get(str(part))
        if field is None:
            break
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        cls = next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), cls)
    return cls


def _within(loc: Path, raw: Any, kind: str) -> Path:
    """``loc`` as far as it exists in ``raw``: pydantic adds the names of a union's members to it."""
    path: list[str | int] = []
    for part in loc:
        inside = isinstance(raw, dict) and part in raw
        inside |= isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        if not inside:
            return (*path, part) if kind == "missing" and isinstance(raw, dict) else tuple(path)
        path.append(part)
        raw = raw[part]
    return tuple(path)


def _sentence(kind: str, message: str) -> str:
    """pydantic's message in our words: ``must be …``."""
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    message = re.sub("^(?:Input|String|Array|List|Tuple|Set) should", "must", message).replace("a valid ", "a ")
    words = {"a array": "a list", "an object": "a mapping", "a string": "text", "a boolean": "true or false"}
    for jargon, plain in words.items():
        message = message.replace(f"must be {jargon}", f"must be {plain}")
    return message.replace("a integer", "an integer")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
