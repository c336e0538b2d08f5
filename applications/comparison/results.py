"""What the runs of a grid have left: results.jsonl, and the failures."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from applications.comparison.folder import run_places
from applications.comparison.grid import ALL
from applications.pages.locking import held
from applications.pages.writing import write_whole

Result = Mapping[str, Any]
"""A summary.json with "variant", "task_label" and "train_size_label"."""

Address = tuple[str, str, str, int]
LABELS = ("variant", "task_label", "train_size_label")


def collected(out: Path) -> list[dict[str, Any]]:
    """The results of all finished runs below ``out``, whichever machine or invocation ran them.

    They are in the order of task, train size, variant and seed.
    """
    results = []
    for place in run_places(out):
        summary, record = place.summary(), place.record()
        if summary is not None and record is not None:
            results.append({**summary, **{name: record[name] for name in LABELS}})
    return sorted(results, key=order)


def order(result: Result) -> tuple[str, float, str, int]:
    """The sort key of a result."""
    task, variant = str(result["task_label"]), str(result["variant"])
    return task, size_order(str(result["train_size_label"])), variant, int(result["seed"])


def size_order(label: str) -> float:
    """A train size as a number; ``all`` is the largest."""
    return float("inf") if label == ALL else float(label)


def failures(out: Path) -> list[dict[str, Any]]:
    """Runs below ``out`` whose last attempt failed: their labels, the reason and the last lines."""
    found = []
    for place in run_places(out):
        failure, record = place.failure(), place.record()
        if failure is not None and record is not None and place.summary() is None:
            labels = {name: record[name] for name in (*LABELS, "seed")}
            found.append({**labels, "folder": str(place.path.relative_to(out)), **failure})
    return sorted(found, key=order)


def unfinished(out: Path) -> list[str]:
    """Folders of runs below ``out`` that were started and neither finished nor failed."""
    return [
        str(place.path.relative_to(out))
        for place in run_places(out)
        if place.summary() is None and place.failure() is None
    ]


def write_results(out: Path) -> list[dict[str, Any]]:
    """Write OUT/results.jsonl from the folders of the runs; returns its lines.

    A lock makes reading and writing one act: of several invocations the last to write has seen
    every run that the others finished.
    """
    out.mkdir(parents=True, exist_ok=True)
    with held(out / "results.lock", wait=True):
        results = collected(out)
        write_lines(out / "results.jsonl", results)
    return results


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON document a line."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def remember(
    out: Path, command: Sequence[str], *, methods: Sequence[str], reference: str | None
) -> None:
    """Append an invocation to OUT/invocations.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"{command[0]} {shlex.join(command[1:])}",
        "methods": list(methods),
        "reference": reference,
    }
    with (out / "invocations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def invocations(out: Path) -> list[dict[str, Any]]:
    """The invocations so far, oldest first; a line that was cut off is left out."""
    return read_lines(out / "invocations.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file, none where it is missing; one cut off is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


@dataclass(frozen=True)
class Gathered:
    """All that a report is made of.

    ``curves`` holds the evaluation lines of a run, ``options`` all options of it, both by task,
    train size, variant and seed; they are empty where only results.jsonl is there.
    """

    results: Sequence[Result]
    failures: Sequence[Mapping[str, Any]] = ()
    unfinished: Sequence[str] = ()
    invocations: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[Address, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    options: Mapping[Address, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """The variants with results: in the order in which invocations named them, then by name."""
        named = [str(name) for line in self.invocations for name in line.get("methods", ())]
        there = {str(result["variant"]) for result in self.results}
        return [name for name in dict.fromkeys([*named, *sorted(there)]) if name in there]

    @property
    def reference(self) -> str | None:
        """The reference of the last invocation that has results."""
        named = [line["reference"] for line in self.invocations if line.get("reference")]
        return named[-1] if named and named[-1] in self.variants else None


def address(labels: Result) -> Address:
    """Task, train size, variant and seed of a result."""
    task, size, variant = (str(labels[n]) for n in ("task_label", "train_size_label", "variant"))
    return task, size, variant, int(labels["seed"])


def gathered(out: Path) -> Gathered:
    """What lies in the folder of a grid: its runs, or results.jsonl alone."""
    if not (out / "runs").is_dir():
        return Gathered(read_lines(out / "results.jsonl"), invocations=invocations(out))
    curves, options = {}, {}
    for place in run_places(out):
        record = place.record()
        if record is not None and place.summary() is not None:
            lines = read_lines(place.path / "metrics.jsonl")
            curves[address(record)] = [line for line in lines if "validation" in line]
            options[address(record)] = record["resolved"]
    return Gathered(
        collected(out), failures(out), unfinished(out), invocations(out), curves, options
    )
