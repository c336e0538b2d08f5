"""The page of a run."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from applications.families.details import Details
from applications.families.metrics import Evaluation
from applications.pages.page import Section, page
from applications.pages.table import Entry, Table, named, shown, table
from applications.pages.writing import write_whole
from applications.runs.conclusion import SPLITS, conclusion, on_d2, quality
from applications.runs.costs import updates
from applications.runs.curves import curves
from applications.runs.outputs import RunFolder
from applications.runs.phases import Workload

MANY = 12
"""More classes than these have no matrix of confusions, but a list of the most frequent ones."""
LONG = 400
"""Longer texts are cut."""
COSTS = {
    "trainable_params": "trained parameters",
    "upper_params": "of them in the upper level",
    "num_lower_steps": "lower updates",
    "num_upper_steps": "upper updates",
    "num_gradients": "gradient units",
    "num_hvps": "Hessian products",
    "wall_seconds": "seconds of training",
    "peak_memory_mb": "most memory, MiB",
    "device": "device",
}
PHASES = {
    "name": "phase",
    "lower_steps": "lower updates",
    "upper_steps": "upper updates",
    "num_gradients": "gradient units",
    "num_hvps": "Hessian products",
    "seconds": "seconds",
}
UNITS = "A gradient unit is one forward and one backward pass of the batches of an update."
SOLVES = {
    "truncated": "took all their products",
    "converged": "converged",
    "indefinite": "stopped at negative curvature",
    "diverged": "diverged",
}


def run_report(
    folder: RunFolder,
    work: Workload,
    *,
    summary: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    notes: Sequence[str],
) -> None:
    """Write report.html into the folder of a run."""
    lines, found = folder.metrics(), evaluations["test"].details
    generated = folder.path / "generated.jsonl"
    text = page(
        title=f"{summary['method']} on {summary['task']}, seed {summary['seed']}",
        lead=f"{summary['model']}. {conclusion(summary)}",
        notes=notes,
        notes_title="Notes",
        sections=[
            Section(
                "Results",
                tables=[quality(summary), *temperature_scaling(summary), *steps(summary)],
            ),
            Section("Classes", tables=[] if found is None else classes(found)),
            Section("Examples of errors", tables=[] if found is None else errors(found, work)),
            Section("Generated texts", tables=[texts(generated)] if generated.is_file() else []),
            Section("Curves", drawings=curves(lines, summary["metric_name"], summary["selected"])),
            Section("Data", tables=data_tables(summary, work)),
            Section("Costs", tables=cost_tables(summary, lines)),
            Section(
                "Options",
                "All of them are also in config.json, in the folder of the run.",
                tables=[
                    named("Options", work.options.as_dict(), folded=True),
                    named("Versions", summary["versions"], folded=True),
                ],
            ),
        ],
    )
    path = folder.path / "report.html"
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def temperature_scaling(summary: Mapping[str, Any]) -> list[Table]:
    """The test split before and after temperature scaling; none without a temperature."""
    if summary["temperature"] is None:
        return []
    names = {"loss": "test_loss", "ece": "ece", "brier": "brier"}
    rows = [
        [name, shown(summary[before]), shown(summary[f"calibrated_{name}"])]
        for name, before in names.items()
    ]
    title = f"Test split, temperature {shown(summary['temperature'])} of the validation split"
    return [table(title, ["what", "before", "after"], rows)]


def steps(summary: Mapping[str, Any]) -> list[Table]:
    """The final step beside the selected one; nothing where none was selected."""
    chosen, name = summary["selected"], summary["metric_name"]
    if not chosen:
        return []
    names = ("validation_metric", "train_metric", "test_metric", "test_loss", "ece", "brier")
    final = {**summary, "validation_metric": None} if on_d2(chosen) else summary
    head = ["step", "updates", *(n.replace("_", " ").replace("metric", name) for n in names)]
    if on_d2(chosen):
        head[2] = f"D2 {name}"
    (phase,) = (phase for phase in summary["phases"] if phase["name"] == chosen["phase"])
    rows = [
        ["selected", shown(chosen["lower_steps"]), *(shown(chosen[n]) for n in names)],
        ["final", shown(updates(phase)), *(shown(final[n]) for n in names)],
    ]
    text = f"Selected in {chosen['phase']}, on the held-out examples; its model is in selected/."
    return [table("Selected step", head, rows, text=text)]


def classes(found: Details) -> list[Table]:
    """Scores of each class, and which were taken for which."""
    if not found.per_class:
        return []
    rows = [
        [name, *(shown(one[key]) for key in ("precision", "recall", "f1", "support"))]
        for name, one in found.per_class.items()
    ]
    head = ["class", "precision", "recall", "F1", "examples"]
    scores = table("Scores of each class", head, rows, folded=len(rows) > 2 * MANY)
    return [scores, *confusions(found)]


def confusions(found: Details) -> list[Table]:
    """A matrix of truth and prediction, or of many classes the most frequent confusions."""
    names, counts = list(found.per_class), found.confusion
    if not counts:
        return []
    if len(names) <= MANY:
        rows = []
        for name, row in zip(names, counts, strict=True):
            shares = [count / max(1, sum(row)) for count in row]
            cells = [Entry(shown(n), share=s) for n, s in zip(row, shares, strict=True)]
            rows.append([Entry(name), *cells])
        text = "A row for each true class: how often it was taken for the class of a column."
        return [Table("Confusions", ["true \\ predicted", *names], rows, text, fixed=True)]
    pairs = [
        (count, names[i], names[j])
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if count and i != j
    ]
    most = sorted(pairs, reverse=True)[: 2 * MANY]
    body = [[true, guess, shown(count)] for count, true, guess in most]
    head = ["true class", "taken for", "examples"]
    return [table("Most frequent confusions", head, body, prose=True)]


def errors(found: Details, work: Workload) -> list[Table]:
    """The worst examples of the test split."""
    if not found.mistakes:
        return []
    kind = work.task.kind
    last = {"classification": "probability", "regression": "distance", "tagging": "entities apart"}
    rows = [
        [cut(one.text), one.truth, one.predicted, f"{one.weight:.3g}"] for one in found.mistakes
    ]
    text = {
        "classification": f"{found.num_mistakes:,} test examples are wrong; here those of which "
        "the model was surest.",
        "regression": "The predictions that are furthest from the truth.",
        "tagging": f"{found.num_mistakes:,} test sentences have an entity missed or wrongly found; "
        "here those with most.",
    }[kind]
    head = ["text", "true", "predicted", last[kind]]
    return [table("Errors", head, rows, text=text, prose=True)]


def texts(file: Any) -> Table:
    """The first texts that were generated for the test split."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:MANY]]
    body = [[cut(r["source"]), cut(r["hypothesis"]), cut(r["references"][0])] for r in rows]
    text = "The first of the test split; all are in generated.jsonl."
    return table("Texts", ["input", "generated", "a reference"], body, text=text, prose=True)


def cut(text: str) -> str:
    """A text, or its beginning."""
    return text if len(text) <= LONG else text[:LONG] + " \u2026"


def data_tables(summary: Mapping[str, Any], work: Workload) -> list[Table]:
    """How many examples served what, and how many there are of each label."""
    counts, labels = summary["examples"], work.task.label_names
    parts = {f"{SPLITS[name]} split": counts[name] for name in SPLITS if counts[name]}
    if counts["lower"] is not None:
        parts |= {
            "of the training split, lower level (D1)": counts["lower"],
            "of the training split, upper level (D2)": counts["upper"],
        }
    elif work.options.levels.control == "two_stage":
        parts |= {
            "of the training split, first stage (D1)": len(work.lower),
            "of the training split, second stage (D2)": len(work.upper),
        }
    elif work.options.levels.control != "none":
        parts["of the training split, trained on"] = len(work.lower)
    made = [named("Examples", parts)]
    if work.task.kind == "classification":
        splits = {"training": work.splits.train, "test": work.splits.test}
        each = [Counter(part["label"]) for part in splits.values()]
        rows = [[name, *(shown(c[n]) for c in each)] for n, name in enumerate(labels)]
        head = ["label", *splits]
        made.append(table(f"The {len(labels)} labels", head, rows, folded=len(labels) > MANY))
    elif labels:
        made.append(named("Labels", {"names of tags": labels}))
    return made


def cost_tables(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What the run took, phase by phase, and how responses were computed."""
    rows = [[shown(phase[name]) for name in PHASES] for phase in summary["phases"]]
    found = summary["hypergradient"] or {"method": "none: one level"}
    how = {name: value for name, value in found.items() if value is not None}
    return [
        named("Cost", {words: summary[name] for name, words in COSTS.items()}),
        table("Phases", list(PHASES.values()), rows, text=UNITS),
        named("Hypergradient", how | solves(lines)),
    ]


def solves(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How the solves behind the logged responses ended, and how near they came.

    Methods that solve nothing, such as one-step ones, have no residual and are not counted. To take
    all products is normal: a residual says what it is worth.
    """
    infos = [info for line in lines for info in line.get("responses", {}).values()]
    solved = [info for info in infos if info["residual"] is not None]
    if not solved:
        return {}
    counts = Counter(info["status"] for info in solved)
    ends = ", ".join(f"{n:,} {SOLVES.get(str(status), status)}" for status, n in counts.items())
    residuals = [info["residual"] for info in solved]
    near = f"median {median(residuals):.2g}, largest {max(residuals):.2g}"
    return {"logged solves": ends, "their residual": near}
