"""Before anything is measured: which arms, which work, on which machine, and what will not be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from compresskit.bench import inputs
from compresskit.bench.environment import capture
from compresskit.bench.inputs import Work
from compresskit.bench.options import BenchOptions
from compresskit.bench.record import Environment, Notice, NotMeasured, Scenario
from compresskit.bench.subjects import Subject, find, onnx_subject
from compresskit.errors import CompressKitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[float, str], None]

LENGTH = 128
_PROCESS_BYTES = 500 * 2**20
"""What a worker takes besides its weights: interpreter, libraries, activations."""


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs to begin.

    Args:
        arms: by name, the baseline first, then the control, then the others.
        works: the cells with their inputs, in order; the first is the headline's.
        resident: all arms stay loaded.
    """

    options: BenchOptions
    arms: dict[str, Subject]
    baseline: str
    control: str | None
    works: list[Work]
    env: Environment
    scratch: Path
    resident: bool = True
    tokenizer: PreTrainedTokenizerBase | None = None
    notices: list[Notice] = field(default_factory=list)
    not_measured: list[NotMeasured] = field(default_factory=list)

    @property
    def others(self) -> list[str]:
        """Names of the arms that are compared with the baseline."""
        return [name for name in self.arms if name not in (self.baseline, self.control)]

    @property
    def header(self) -> dict[str, Any]:
        """What a resumed run must agree on."""
        return {
            "environment": self.env.hash,
            "models": {name: f"{subject.engine} {subject.fingerprint}" for name, subject in self.arms.items()},
            "inputs": {work.cell.id: work.cell.input_hash for work in self.works},
            "profile": self.options.profile,
            "device": self.options.device,
            "seed": self.options.seed,
        }


def prepare(options: BenchOptions, scratch: Path, tell: Progress) -> Prepared:
    """Find the models, make the inputs, look at the machine.

    Args:
        scratch: an empty folder of this run.
    """
    tell(0.0, "check the models")
    specs, first = _ordered(options)
    subjects = find(specs, options.engine)
    subjects.insert(0, subjects.pop(first))
    baseline = subjects[0]
    notices: list[Notice] = []
    missing: list[NotMeasured] = []
    if options.asks_for("onnx"):
        tell(0.0, "export the baseline to ONNX, for ONNX Runtime's float32 beside torch's")
        subjects += _exported(baseline, subjects, scratch, missing)
    elif baseline.engine == "torch":
        why = "a quick run leaves it out" if options.profile == "quick" else "it was not asked for"
        missing.append(NotMeasured(what="ONNX Runtime float32 beside torch float32", why=why))
    arms = {baseline.name: baseline}
    control = None
    if options.control:
        control = f"{baseline.name} (again)"
        arms[control] = replace(baseline, name=control)
    else:
        missing.append(NotMeasured(what="the baseline against itself", why="it was switched off"))
    arms |= {subject.name: subject for subject in subjects[1:]}
    tokenizer = inputs.load_tokenizer(subjects)
    works = _works(options, baseline, tokenizer)
    env = capture(device=options.device, full=options.full_env)
    _tell_load(env, options, notices)
    if options.task is None:
        missing.append(NotMeasured(what="quality on a task", why="no --task and --data were given"))
    return Prepared(
        options=options,
        arms=arms,
        baseline=baseline.name,
        control=control,
        works=works,
        env=env,
        scratch=scratch,
        resident=_resident(options, arms),
        tokenizer=tokenizer,
        notices=notices,
        not_measured=missing,
    )


def _ordered(options: BenchOptions) -> tuple[list[str], int]:
    """The models to open, and which of them is the baseline."""
    specs = list(options.models)
    if options.baseline is None:
        return specs, 0
    if options.baseline in specs:
        return specs, specs.index(options.baseline)
    return [options.baseline, *specs], 0


def _exported(baseline: Subject, subjects: list[Subject], scratch: Path, missing: list[NotMeasured]) -> list[Subject]:
    """The baseline in ONNX Runtime, exported into ``scratch``; nothing, with the reason noted, where that can't be."""
    what = "ONNX Runtime float32 beside torch float32"
    if baseline.engine != "torch" or baseline.compressed:
        missing.append(NotMeasured(what=what, why="the baseline is no uncompressed checkpoint in torch"))
        return []
    if any(subject.engine == "onnxruntime" and not subject.compressed for subject in subjects):
        return []
    from compresskit.checkpoint.source import open_source
    from compresskit.export import export_onnx

    target = scratch / "exported" / "model.onnx"
    try:
        source = open_source(baseline.path)
        report = export_onnx(
            source.load_model(dtype="float32"),
            target,
            tokenizer=source.load_tokenizer(),
            sentence_transformer=source.sentence_transformer,
        )
    except CompressKitError as error:
        missing.append(NotMeasured(what=what, why=error.what))
        return []
    exported = onnx_subject(report.path, "onnxruntime")
    name = f"{baseline.label} (onnxruntime float32)"
    # Exporting again gives other bytes, and the same model: a resumed run goes by the source.
    fingerprint = f"exported from {baseline.fingerprint}"
    return [replace(exported, name=name, label=name, fingerprint=fingerprint, config=baseline.config)]


def _works(options: BenchOptions, baseline: Subject, tokenizer: PreTrainedTokenizerBase | None) -> list[Work]:
    scenarios: tuple[Scenario, ...] = options.scenarios or (("decode",) if baseline.generative else ("encode",))
    found = []
    for threads in options.threads:
        for scenario in scenarios:
            new = options.new_tokens if scenario == "decode" else 0
            lengths = options.lengths or (inputs.default_length(baseline, LENGTH, new),)
            for length in lengths:
                for batch in options.batches:
                    found.append(
                        inputs.make_work(
                            baseline,
                            tokenizer,
                            scenario,
                            batch=batch,
                            length=length,
                            threads=threads,
                            new_tokens=options.new_tokens,
                            seed=options.seed,
                        )
                    )
    return found


def _resident(options: BenchOptions, arms: dict[str, Subject]) -> bool:
    if options.interleave != "auto":
        return options.interleave == "resident"
    sets = options.stop.replicates[0] if options.stop.together else 1
    needed = sets * sum(sum(subject.served.values()) + _PROCESS_BYTES for subject in arms.values())
    return needed < psutil.virtual_memory().available


def _tell_load(env: Environment, options: BenchOptions, notices: list[Notice]) -> None:
    load, usable = (env.cpu.get("load") or [0.0])[0], env.cpu.get("allowed") or env.cpu.get("logical") or 1
    if env.cpu.get("quota"):
        usable = min(usable, env.cpu["quota"])
    if load > 0.5 * usable:
        notices.append(Notice(code="CK-B020", text=f"load average {load:.1f} on {usable:g} cores before the run"))
    if max(options.threads) > usable:
        notices.append(
            Notice(
                code="CK-B021", text=f"{max(options.threads)} threads on {usable:g} cores: threads wait for each other"
            )
        )
    if env.cpu.get("governor") not in (None, "performance"):
        notices.append(Notice(code="CK-B022", text=f"frequency governor {env.cpu['governor']}: clocks vary"))
