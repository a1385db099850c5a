"""Which profile of ONNX file is the best on this machine: each that applies is made, measured, and one is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.bench.options import BenchOptions
from compresskit.bench.record import Record
from compresskit.bench.run import run
from compresskit.bench.schedule import Profile as Schedule
from compresskit.errors import ExportError
from compresskit.export import ExportReport, export_onnx
from compresskit.export.fidelity import fidelity
from compresskit.export.publish import check_target, publish, staging
from compresskit.export.trace import Profile
from compresskit.nn.bitsandbytes_layers import MixedInt8Linear
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.static_int8 import StaticInt8Linear

AUTO = "auto"
NOISE = 0.02
"""Times that differ by less are equal, however sure the difference is."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Shape:
    """What is measured.

    Args:
        length: tokens of a row; by default 128, or what the model takes. new_tokens: of a decoder; of an
            encoder-decoder, the encoder and the decoder's first pass are measured.
        seconds: for each file.
    """

    batch: int = 1
    length: int | None = None
    threads: int = 1
    new_tokens: int = 8
    seconds: float = 4.0


@dataclass(frozen=True)
class Candidate:
    """One profile's files.

    Args:
        milliseconds: the median of a call; of decoders, of a token.
        ratio, ci: of its time to the first candidate's, with its 95 % interval.
        bytes: of all its files.
        cosine: to the checkpoint's weights with float products.
        why: it was kept or not, in words.
    """

    profile: str
    milliseconds: float | None = None
    ratio: float | None = None
    ci: tuple[float, float] | None = None
    bytes: int | None = None
    cosine: float | None = None
    kept: bool = False
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def profiles_for(model: PreTrainedModel) -> list[Profile]:
    """The profiles that give different files of ``model``.

    ``static`` needs layers with fixed scales; where nothing else is an integer product, ``portable`` is the same file.
    """
    kinds = {type(module) for module in model.modules()}
    if StaticInt8Linear not in kinds:
        return ["fast", "portable"]
    return ["fast", "static", "portable"] if kinds & {Int8Linear, MixedInt8Linear} else ["fast", "static"]


def export_best(
    model: PreTrainedModel,
    output: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sentence_transformer: Any = None,
    min_cosine: float | None = None,
    shape: Shape | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[ExportReport, list[Candidate]]:
    """Write the files of the profile that is fastest here among those that keep enough, in the place of ``output``.

    Equal times, as far as the measurement can tell, go to the smaller files.

    Args:
        min_cosine: the least that a file may keep of the checkpoint's outputs; see ``export.fidelity``.
        options: of ``export_onnx``: pooling, cache, opset.

    Raises:
        ExportError: CK-X014, none keeps enough; what an export raised, where every one failed.
        ResourceError: CK-B012, another benchmark runs on this machine.
    """
    target, tell, wanted = check_target(Path(output)), progress or (lambda share, what: None), profiles_for(model)
    with staging(target) as folder:
        _describe(folder, model, tokenizer)
        reports: dict[str, ExportReport] = {}
        failed: dict[str, ExportError] = {}
        cosines: dict[str, float] = {}
        for number, profile in enumerate(wanted):
            begin = 0.7 * number / len(wanted)
            try:
                reports[profile] = export_onnx(
                    model,
                    folder / profile / target.name,
                    tokenizer=tokenizer,
                    sentence_transformer=sentence_transformer,
                    profile=profile,
                    progress=lambda share, what, begin=begin, profile=profile: tell(  # type: ignore[misc]
                        begin + 0.7 * share / len(wanted), f"{profile}: {what}"
                    ),
                    **options,
                )
            except ExportError as error:
                failed[profile] = error
                continue
            cosines[profile] = fidelity(model, reports[profile], tokenizer, sentence_transformer)
        if not reports:
            raise failed[wanted[0]]
        tell(0.7, f"measure {', '.join(reports)}")
        times = measure({name: report.path for name, report in reports.items()}, shape or Shape())
        candidates = [
            replace(times[name], bytes=sum(reports[name].files.values()), cosine=cosines[name])
            if name in reports
            else Candidate(name, why=f"it could not be made: {failed[name].what}")
            for name in wanted
        ]
        candidates = choose(candidates, min_cosine)
        best = next(candidate.profile for candidate in candidates if candidate.kept)
        report = reports[best]
        tell(0.98, "publish")
        publish([report.path.parent / name for name in report.files], target)
    return report.moved(target.parent), candidates


def _describe(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Put beside the files what a benchmark reads: the config and the tokenizer."""
    config = {**json.loads(model.config.to_json_string(use_diff=False)), "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def measure(files: Mapping[str, Path], shape: Shape) -> dict[str, Candidate]:
    """Time ``files`` by name, interleaved in fresh processes on the CPU, over the same inputs."""
    # Two sets of processes that take turns; nothing but times.
    schedule = Schedule(AUTO, (2, 2), True, shape.seconds, shape.seconds, None, 0.02, 3, 40, 30.0)
    options = BenchOptions(
        models=tuple(str(path) for path in files.values()),
        threads=(shape.threads,),
        batches=(shape.batch,),
        lengths=() if shape.length is None else (shape.length,),
        new_tokens=shape.new_tokens,
        custom=schedule,
        control=False,
        onnx=False,
        energy=False,
        details=False,
    )
    return _times(run(options), list(files))


def _times(record: Record, names: Sequence[str]) -> dict[str, Candidate]:
    """By name, in the order of the record's arms, which is that of the files."""
    cell = record.plan.cells[0]
    metric = "latency.token.p50" if cell.scenario == "decode" else "latency.p50"
    found = {}
    for number, (name, arm) in enumerate(zip(names, record.arms, strict=True)):
        compared = next((row for row in record.comparisons if row.b == arm.name and row.cell == cell.id), None)
        ratio, ci = (1.0, (1.0, 1.0)) if number == 0 else (None, None)
        if compared is not None and compared.ratio is not None:
            ratio, ci = compared.ratio, compared.ci or (compared.ratio, compared.ratio)
        found[name] = Candidate(name, arm.metric(metric, cell.id).value, ratio, ci, why=arm.error or "")
    return found


def choose(candidates: Sequence[Candidate], min_cosine: float | None) -> list[Candidate]:
    """The same with one of them kept, and for the others why not.

    Raises:
        ExportError: CK-X014.
    """
    least = -1.0 if min_cosine is None else min_cosine
    runs = [each for each in candidates if each.ratio is not None]
    good = [each for each in runs if each.cosine is not None and each.cosine >= least]
    if not good:
        kept = ", ".join(f"{each.profile} {each.cosine:.5f}" for each in runs if each.cosine is not None)
        raise ExportError(
            "CK-X014",
            f"no profile keeps a mean cosine of {least}",
            why=f"on this checkpoint: {kept}"
            if kept
            else "; ".join(f"{each.profile}: {each.why}" for each in candidates),
            fix="ask for less, or leave sensitive layers out of the quantization. Nothing was written.",
        )
    fastest = min(good, key=_ratio)
    equal = [each for each in good if _within_noise(each, fastest)]
    best = min(equal, key=lambda each: (each.bytes or 0, _ratio(each)))
    return [_judged(each, best, fastest, least, equal) for each in candidates]


def _ratio(candidate: Candidate) -> float:
    return candidate.ratio or 0.0


def _within_noise(candidate: Candidate, fastest: Candidate) -> bool:
    """Whether the times can't be told apart: their intervals meet, or they differ by less than ``NOISE``."""
    if candidate.ci is None or fastest.ci is None:
        return candidate is fastest
    return candidate.ci[0] <= fastest.ci[1] or _ratio(candidate) <= (1 + NOISE) * _ratio(fastest)


def _judged(
    each: Candidate, best: Candidate, fastest: Candidate, least: float, equal: Sequence[Candidate]
) -> Candidate:
    if each is best:
        if len(equal) == 1:
            why = "the fastest" if least < 0 else f"the fastest of those that keep {least}"
        else:
            why = "the smallest of those that are equally fast"
        return replace(each, kept=True, why=why)
    if each.ratio is None:
        return replace(each, why=each.why or "it could not be measured")
    if each.cosine is None or each.cosine < least:
        return replace(each, why=f"it keeps less than {least}")
    if each in equal:
        return replace(each, why=f"as fast as {best.profile}, and not smaller")
    return replace(each, why=f"{_ratio(each) / _ratio(fastest):.2f} times the time of {fastest.profile}")
