"""The rows as tables: means over seeds, and paired differences with their intervals."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from applications.comparison.statistics import mean_interval, spread
from benchmarks.reweight.on_features import LEARNED

HEAD = "| method | seeds | accuracy | learned weights minus it | over two-stage | AUC | CPU s |"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each task, route and number of trusted labels."""
    cells = dict.fromkeys((r["task"], r["route"], r["labels"]) for r in rows)
    return "\n\n".join(
        table([r for r in rows if (r["task"], r["route"], r["labels"]) == cell])
        for cell in sorted(cells)
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table, best method first."""
    first = rows[0]
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["seed"]] = row["test_metric"]
    lines = [
        f"**{first['task']}, {first['route']}, {first['labels']} trusted labels**",
        "",
        HEAD,
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in sorted(found, key=lambda m: -fmean(found[m].values())):
        scores = found[method]
        whole = spread(list(scores.values()))
        assert whole is not None
        std = "" if whole.std is None else f" ± {100 * whole.std:.1f}"
        mine = [r for r in rows if r["method"] == method]
        aucs = [r["auc"] for r in mine if "auc" in r]
        lines.append(
            f"| {method} | {whole.n} | {100 * whole.mean:.1f}{std} "
            f"| {paired(found.get(LEARNED, {}), scores)} "
            f"| {paired(scores, found.get('two_stage', {}))} "
            f"| {f'{fmean(aucs):.2f}' if aucs else ''} "
            f"| {fmean(r['cpu_seconds'] for r in mine):.1f} |"
        )
    return "\n".join(lines)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    """The mean difference in points over the seeds of both, with its 95 % interval."""
    both = [100 * (first[seed] - second[seed]) for seed in first if seed in second]
    if not both or not any(both):
        return ""
    ends = mean_interval([both])
    said = f"{fmean(both):+.1f}"
    if ends.low is None or ends.high is None:
        return said
    return f"{said} ({ends.low:+.1f} to {ends.high:+.1f})"
