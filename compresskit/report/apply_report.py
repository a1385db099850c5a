"""Reading the report.json of an apply: every figure that the page and the tables use has its type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compresskit.checkpoint.files import printable, read_small
from compresskit.checkpoint.strict_json import parse
from compresskit.errors import DataError, ModelError, SecurityError

MOST_BYTES = 64 * 2**20
_MOST = 10**15

Count = Annotated[int, Field(ge=0, le=_MOST)]
Figure = Annotated[float, Field(ge=-_MOST, le=_MOST, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Size(_Part):
    parameters: Annotated[int, Field(gt=0, le=_MOST)]
    disk_bytes: Annotated[int, Field(gt=0, le=_MOST)]


class _Fidelity(_Part):
    cosine_mean: Figure = 0.0
    cosine_min: Figure = 0.0
    top1_agreement: Figure = 0.0
    kl_mean: Figure = 0.0
    domains: dict[str, _Fidelity] = {}

    @model_validator(mode="after")
    def _in_pairs(self) -> _Fidelity:
        for pair in ({"cosine_mean", "cosine_min"}, {"top1_agreement", "kl_mean"}):
            if len(pair & self.model_fields_set) == 1:
                raise ValueError(f"{' and '.join(sorted(pair))} go together")
        return self


class _Recovery(_Part):
    method: str


class _Step(_Part):
    method: str
    sites: list[str]
    skipped: dict[str, str]
    parameters: Count
    bytes: Count
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    fidelity: _Fidelity
    recover: _Recovery | None = None


class _Quality(_Part):
    metric: str
    before: Figure
    after: Figure


class _Onnx(_Part):
    profile: str
    bytes: Count


class _Report(_Part):
    source: str
    native: bool
    before: _Size
    after: _Size
    fidelity: _Fidelity
    steps: list[_Step]
    warnings: list[str]
    gates: list[dict[str, Any]]
    recipe: dict[str, Any]
    quality: _Quality | None = None
    reload_max_abs_diff: Figure | None
    onnx: _Onnx | None = None


def read_report(path: Path) -> dict[str, Any]:
    """The content of ``report.json`` of a compressed checkpoint.

    Raises:
        DataError: CK-D040, if there is none, or it is not one of ours.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        content = parse(read_small(file, MOST_BYTES)[0], printable(file))
    except (OSError, ModelError, SecurityError) as error:
        why = error.why or error.what if isinstance(error, ModelError | SecurityError) else printable(error)
        raise DataError("CK-D040", "there is no readable report", where=printable(file), why=why) from None
    try:
        _Report.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            "CK-D040",
            "this is not the report of an apply",
            where=printable(file),
            why=printable(f"{place}: {first['msg']}"),
        ) from None
    known: dict[str, Any] = content
    return known
