"""What a suite found, in one JSON file and as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.bench.files import write_atomically
from compresskit.bench.record import Environment, Record, read

if TYPE_CHECKING:
    from compresskit.suite.measure import Entry
    from compresskit.suite.points import Point
    from compresskit.suite.schema import Suite

FORMAT = "compresskit.suite/1.0"
_BY_CPU_TIME = "by CPU time"


@dataclass
class Row:
    """One model in one engine.

    Args:
        size_bytes: files needed to serve.
        cosine: kind of text -> mean and least cosine to the baseline's embeddings.
        quality: task -> value, unit, interval, difference from the baseline with its interval, and ``live``: the score
            before the model was saved and exported.
        latency: cell -> p50 in ms, ratio of times to the baseline's with its interval, verdict.
    """

    model: str
    name: str
    point: str
    engine: str
    role: str
    size_bytes: float | None = None
    cosine: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def rows_of(
    model: str, path: Path, entries: Sequence[Entry], points: Sequence[Point], content: Mapping[str, Any]
) -> list[Row]:
    """A row for each entry of the record in ``path``."""
    record = read(path)
    live = {point.name: point.live for point in points}
    return [_row(model, entry, record, content, live.get(entry.point, {})) for entry in entries]


def _row(model: str, entry: Entry, record: Record, content: Mapping[str, Any], live: Mapping[str, float]) -> Row:
    arm = record.arm(entry.name)
    size = arm.metrics.get("size.served")
    row = Row(
        model, entry.name, entry.point, entry.engine, arm.role, None if size is None else size.value, error=arm.error
    )
    row.cosine = {k: v for k, v in content["fidelity"].get(entry.name, {}).items() if k != "error"}
    scores = {arm.quality.task: arm.quality.model_dump(mode="json")} if arm.quality is not None else {}
    scores |= {task: found[entry.name] for task, found in content["further"].items() if entry.name in found}
    row.quality = {task: _quality(score, live.get(task)) for task, score in scores.items()}
    for cell in record.plan.cells:
        p50 = arm.metric("latency.p50", cell.id)
        compared = next(
            (c for c in record.comparisons if c.b == entry.name and c.cell == cell.id and c.metric == "latency.p50"),
            None,
        )
        row.latency[cell.id] = {"p50_ms": p50.value}
        if compared is not None:
            found = compared.model_dump(mode="json")
            row.latency[cell.id] |= {name: found[name] for name in ("ratio", "ci", "verdict", "reason")}
    return row


def _quality(score: Mapping[str, Any], live: float | None) -> dict[str, Any]:
    against = score.get("against") or {}
    names = ("p_mcnemar", "flips", "kl_mean", "top1_agreement", "worst_class")
    return {
        **{name: score.get(name) for name in ("metric", "value", "unit", "ci", "n", "reason")},
        "difference": against.get("difference"),
        "difference_ci": against.get("ci"),
        **{name: against[name] for name in names if name in against},
        "live": live,
    }


def summarize(suite: Suite, env: Environment, done: Any, output: Path) -> dict[str, Any]:
    """Write ``NAME.json`` and ``NAME.md`` into ``output``; gives the content of the first."""
    record = read(done.records[0]) if done.records else None
    content = {
        "schema": FORMAT,
        "name": suite.file.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"compresskit bench suite benchmarks/suites/{suite.path.name} -o {output.name}",
        "environment": {
            "hash": env.hash,
            "cpu": env.cpu.get("model"),
            "cores": env.cpu.get("logical"),
            "load": (record.env.cpu.get("load") if record else None) or env.cpu.get("load"),
            "packages": env.packages,
            "git_commit": env.git_commit,
        },
        "noise": record.env.noise.model_dump(mode="json") if record else None,
        "plan": record.plan.model_dump(mode="json", exclude={"cells"}) if record else None,
        "headline": record.plan.headline if record else None,
        "tasks": [{**task.model_dump(exclude_none=True), "data": Path(task.data).name} for task in suite.tasks],
        "rows": [asdict(row) for row in done.rows],
        "skipped": done.skipped,
        "failed": done.failed,
        "records": [path.name for path in done.records],
    }
    name = suite.file.name
    write_atomically(output / f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_atomically(output / f"{name}.md", markdown(content))
    return content


def markdown(content: Mapping[str, Any]) -> str:
    """The table of a summary, with date, machine and commit above it."""
    return "\n".join([*_head(content), "", *_table(content), "", *notes(content)]).rstrip() + "\n"


def _head(content: Mapping[str, Any]) -> list[str]:
    env, noise = content["environment"], content.get("noise") or {}
    packages = env["packages"]
    wanted = ("torch", "transformers", "onnxruntime", "openvino", "nncf", "torchao", "bitsandbytes")
    versions = ", ".join(f"{name} {packages[name]}" for name in wanted if name in packages)
    commit = (env["git_commit"] or "unknown")[:12]
    load = ", ".join(f"{value:.1f}" for value in env.get("load") or [])
    lines = [
        f"{content['created'][:10]}, {env['cpu']}, {env['cores']} cores, commit {commit}.",
        f"{versions}.",
    ]
    if noise.get("aa_ci"):
        low, high = noise["aa_ci"]
        fitness = "; ".join([noise["fit"], *noise.get("reasons", [])])
        lines.append(
            f"Load average before the run {load}; the baseline against itself gave {noise['aa_ratio']:.3f}"
            f" [{low:.3f}, {high:.3f}] (fitness of the machine: {fitness})."
        )
    lines.append(f"`{content['command']}`")
    return [f"{line}  " for line in lines[:-1]] + lines[-1:]


def _table(content: Mapping[str, Any]) -> list[str]:
    titles, rows = cells(content)
    if not rows:
        return ["Nothing was measured."]
    marks = "|" + "---|" * len(titles)
    return ["| " + " | ".join(titles) + " |", marks, *("| " + " | ".join(row) + " |" for row in rows)]


def cells(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table: size, cosines, scores, and for each cell the ratio of times with its verdict."""
    rows = content["rows"]
    domains = list(dict.fromkeys(domain for row in rows for domain in row["cosine"]))
    tasks = list(dict.fromkeys(task for row in rows for task in row["quality"]))
    cells = list(dict.fromkeys(cell for row in rows for cell in row["latency"]))
    several = len({row["model"] for row in rows}) > 1
    titles = (["model"] if several else []) + ["", "MB"] + [f"cosine, {domain}" for domain in domains]
    for task in tasks:
        metric = next(row["quality"][task]["metric"] for row in rows if task in row["quality"])
        titles += [f"{task}: {metric}", "difference"]
    for cell in cells:
        titles += [f"{cell}: time over the baseline's", "verdict"]
    lines: list[list[str]] = []
    seen = set()
    for row in rows:
        if row["role"] == "baseline" and row["model"] in seen:
            continue
        seen.add(row["model"])
        columns = ([row["model"]] if several else []) + [row["name"], _size(row)]
        columns += [_cosine(row, domain) for domain in domains]
        for task in tasks:
            columns += _score(row["quality"].get(task))
        for cell in cells:
            columns += _time(row, cell)
        lines.append(columns)
    return titles, lines


def _size(row: Mapping[str, Any]) -> str:
    return "" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.2f}"


def _cosine(row: Mapping[str, Any], domain: str) -> str:
    found = row["cosine"].get(domain)
    return f"{found['mean']:.4f} ({found['min']:.4f})" if found else ""


def _score(score: Mapping[str, Any] | None) -> list[str]:
    if score is None or score["value"] is None:
        return [score["reason"] if score else "", ""]
    change = ""
    if score["difference"] is not None and score["difference_ci"]:
        low, high = score["difference_ci"]
        change = f"{score['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return [f"{score['value']:.2f}", change]


def _time(row: Mapping[str, Any], cell: str) -> list[str]:
    if row["error"]:
        return ["", f"could not be run: {row['error'][:80]}"]
    found = row["latency"].get(cell) or {}
    if found.get("ratio") is None or not found.get("ci"):
        return [f"{found['p50_ms']:.1f} ms" if found.get("p50_ms") is not None else "", row["role"]]
    low, high = found["ci"]
    return [f"{found['ratio']:.3f} [{low:.3f}, {high:.3f}]", found["verdict"]]


def notes(content: Mapping[str, Any]) -> list[str]:
    """What was left out, and why."""
    reasons = [found.get("reason") or "" for row in content["rows"] for found in row["latency"].values()]
    lines = []
    if any(reason.startswith(_BY_CPU_TIME) for reason in reasons):
        lines.append(
            "- Other work interrupted the samples: ratios and verdicts go by the process's CPU time, less disturbed"
            " by that than the wall clock."
        )
    lines += [f"- {each['what']} was skipped: {each['why']}" for each in content["skipped"]]
    lines += [f"- {each['what']} failed: {each['why']} ({each['code']})" for each in content["failed"]]
    return lines
