"""A suite from end to end: make the points, measure them, sum up. Finished cells are files, and are not made twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresskit.bench.environment import capture
from compresskit.calibrate.text import builtin_texts
from compresskit.checkpoint.source import Source, open_source
from compresskit.errors import CompressKitError, DataError, InterruptedRun, ResourceError
from compresskit.suite.cells import Cell, Cells, key_of
from compresskit.suite.measure import Entry, measure
from compresskit.suite.peers import PEERS, Material
from compresskit.suite.points import Point, make_baseline, make_point
from compresskit.suite.schema import Suite
from compresskit.suite.summary import Row, rows_of, summarize
from compresskit.tasks.data import exists

Tell = Callable[[float, str], None]

CALIBRATION_TEXTS = 64


@dataclass
class _Progress:
    """What the summary is made from."""

    rows: list[Row] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def run_suite(suite: Suite, output: Path, *, resume: bool = False, tell: Tell | None = None) -> dict[str, Any]:
    """Go through ``suite``; write records, cells and the summary into ``output``. Gives the summary.

    A point that can't be made is left out with its error; the others go on.

    Raises:
        DataError: CK-D001, data that a task names aren't there.
        CompressKitError: a source can't be opened, or the baseline can't be measured.
    """
    for task in suite.tasks:
        for data in (task.data, task.train):
            if data is not None and not exists(data):
                raise DataError("CK-D001", "there is no such data file", where=data, fix="see benchmarks/README.md")
    return _Run(suite, output, resume, tell or (lambda share, what: None)).execute()


class _Run:
    def __init__(self, suite: Suite, output: Path, resume: bool, tell: Tell) -> None:
        self.suite, self.output, self.resume, self.tell = suite, output, resume, tell
        self.cells = Cells(output / "cells", resume=resume)
        self.env = capture(device="cpu")
        self.done = _Progress()

    def execute(self) -> dict[str, Any]:
        for model, spec in self.suite.file.models.items():
            self._model(model, open_source(spec))
        return summarize(self.suite, self.env, self.done, self.output)

    def _model(self, model: str, source: Source) -> None:
        file, work = self.suite.file, self.output / "work" / model
        self.tell(0.0, f"{model}: export the source")
        base = make_baseline(source, work, file.engines, plain=bool(file.peers))
        points = {name: point for name in self.suite.recipes if (point := self._point(model, name, source, work))}
        if file.measure == "together":
            peers = self._peers(source, Path(base["plain"]), work) if file.peers else []
            self._measured(model, "together", list(points.values()), source, base, peers)
            return
        for name, point in points.items():
            self._measured(model, name, [point], source, base, [])

    def _point(self, model: str, name: str, source: Source, work: Path) -> Point | None:
        file = self.suite.file
        recipe = self.suite.recipes[name]
        tasks = [task.model_dump() for task in self.suite.tasks]
        key = key_of(recipe.to_dict(), source.fingerprint, sorted(file.engines), tasks, file.seed, self.env.hash)
        cell_name, folder = f"{model}--{name}--made", work / name
        found = self.cells.find(cell_name, key)
        if found is not None and folder.is_dir():
            return Point(**found.content)
        self.tell(0.0, f"{model}: {name}")
        try:
            point = make_point(
                name, recipe, source, folder, file.engines, self.suite.tasks, seed=file.seed, threads=file.threads[0]
            )
        except InterruptedRun:
            raise
        except CompressKitError as error:
            self.cells.failed(cell_name, key, error)
            self.done.failed.append({"what": f"{model}, {name}", "code": error.code, "why": error.what})
            return None
        self.cells.keep(cell_name, Cell(key, point.to_dict()))
        return point

    def _peers(self, source: Source, plain: Path, work: Path) -> list[Entry]:
        texts = builtin_texts(CALIBRATION_TEXTS, self.suite.file.seed)
        material = Material(source, plain, texts)
        found = []
        for number, name in enumerate(self.suite.file.peers):
            peer = PEERS[name]
            absent = peer.absent()
            if absent is not None:
                self.done.skipped.append({"what": peer.title, "why": absent})
                continue
            self.tell(number / len(self.suite.file.peers), f"make {name}")
            folder = work / "peers" / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                made = peer.make(material, folder)
            except Exception as error:  # another project's code raises whatever it likes; the row says so
                self.done.skipped.append({"what": peer.title, "why": f"{type(error).__name__}: {error}"[:300]})
                continue
            versions = ", ".join(f"{package} {version}" for package, version in peer.versions().items())
            found.append(Entry(peer.title, made.spec, name, versions))
        return found

    def _measured(
        self, model: str, group: str, points: list[Point], source: Source, base: dict[str, str], peers: list[Entry]
    ) -> None:
        entries = [*_baselines(self.suite, base), *_entries(points), *peers]
        file = self.suite.file
        settings = file.model_dump(exclude={"recipes", "peers", "models"})
        key = key_of(
            [self._made_key(model, point) for point in points], [vars(entry) for entry in peers], settings,
            source.fingerprint, self.env.hash,
        )  # fmt: skip
        name = f"{model}--{group}--measured"
        path = self.output / "records" / f"{model}--{group}.json"
        found = self.cells.find(name, key)
        if found is None or not path.is_file():
            try:
                content = measure(entries, self.suite, source, path, resume=self.resume, tell=self.tell)
            except (ResourceError, InterruptedRun):
                raise  # another benchmark runs, the disk is full, someone stops it: not this point's fault
            except CompressKitError as error:
                self.cells.failed(name, key, error)
                self.done.failed.append({"what": f"{model}, {group}", "code": error.code, "why": error.what})
                return
            found = self.cells.keep(name, Cell(key, content))
        self.done.records.append(path)
        self.done.rows += rows_of(model, path, entries, points, found.content)

    def _made_key(self, model: str, point: Point) -> str:
        recipe = self.suite.recipes[point.name]
        return key_of(model, recipe.to_dict(), point.report.get("after"))


def _baselines(suite: Suite, base: dict[str, str]) -> list[Entry]:
    """The source in the baseline's engine first, then in others: torch's fp32 never without ONNX Runtime's."""
    engines = [suite.file.baseline, *(engine for engine in base if engine not in (suite.file.baseline, "plain"))]
    wanted = [engine for engine in engines if engine in ("torch", "onnxruntime", *suite.file.engines)]
    return [Entry(f"fp32, {engine}", base[engine], "", engine) for engine in wanted]


def _entries(points: list[Point]) -> list[Entry]:
    return [
        Entry(f"{point.name}, {engine}", spec, point.name, engine)
        for point in points
        for engine, spec in point.specs.items()
    ]
