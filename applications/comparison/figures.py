"""The figures of a comparison, as SVG elements with a description."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from applications.comparison.results import Gathered, Result, address
from applications.comparison.summary import Cell, cell_of, value
from applications.pages.drawing import COLOURS, INK, LINE, PAPER, SOFT, Drawing, drawn, short, tell
from applications.runs.costs import updates

MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.")
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Style:
    """How one variant looks in every figure."""

    color: str
    marker: str
    linestyle: str


def styles(variants: Sequence[str]) -> dict[str, Style]:
    """A look for each variant: colours come again after eight, with other dashes."""
    return {
        name: Style(
            COLOURS[place % len(COLOURS)],
            MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
            DASHES[place // len(COLOURS) % len(DASHES)],
        )
        for place, name in enumerate(variants)
    }


def tidy(axes: Axes) -> None:
    """A light frame and grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for the figure, outside its axes."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (ddof = 1; 0 for one value)."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def costs(found: Gathered, cell: Cell) -> Drawing | None:
    """Test metric against gradient units and against seconds, of one task and train size."""
    results = [result for result in found.results if cell_of(result) == cell]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    metric = str(results[0]["metric_name"])
    names = {"num_gradients": "gradient units", "wall_seconds": "seconds of training"}
    look, any_point = styles(found.variants), False
    for panel, (name, label) in zip(axes, names.items(), strict=True):
        for variant in found.variants:
            points = [
                (cost, quality)
                for result in results
                if result["variant"] == variant
                and (quality := value(result, "test_metric", "final")) is not None
                and (cost := value(result, name, "final")) is not None
            ]
            if points:
                any_point = True
                (x, x_spread), (y, y_spread) = (
                    mean_and_spread([point[k] for point in points]) for k in range(2)
                )
                panel.errorbar(
                    x,
                    y,
                    xerr=x_spread,
                    yerr=y_spread,
                    color=look[variant].color,
                    marker=look[variant].marker,
                    markersize=8,
                    capsize=3,
                    linestyle="none",
                    label=f"{short(variant)} (n={len(points)})",
                )
                said = f"{variant}\n{label} {x:,.0f}\ntest {metric} {y:.4g} \u00b1 {y_spread:.2g}"
                tell(panel, [x], [y], [said])
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        tidy(panel)
    if not any_point:
        return None
    axes[0].set_ylabel(f"test {metric}")
    legend_below(figure, axes[0])
    return drawn(
        figure,
        f"{named(cell)}: quality against cost",
        f"Mean test {metric} of every variant against its gradient units and its seconds of "
        f"training; bars are one standard deviation over the seeds.",
    )


def named(cell: Cell) -> str:
    """A task and train size in words."""
    size = "all" if cell[1] == "all" else f"{int(cell[1]):,}"
    return f"{cell[0]}, {size} training examples"


def whole_steps(lines: Sequence[Line], result: Result) -> list[tuple[float, Line]]:
    """Evaluations with their lower steps counted over all phases of the run; a phase of the upper
    level alone counts its own.
    """
    lengths = [float(updates(phase)) for phase in result.get("phases") or ()]
    return [(updates(line) + sum(lengths[: line.get("phase_index", 0)]), line) for line in lines]


def in_gradients(lines: Sequence[Line], result: Result) -> list[tuple[float, Line]]:
    """Evaluations with their gradient units."""
    del result
    return [(float(line["num_gradients"]), line) for line in lines if "num_gradients" in line]


Placed = Callable[[Sequence[Line], Result], list[tuple[float, Line]]]


def curves(found: Gathered, cell: Cell) -> Drawing | None:
    """Validation metric and loss against lower steps and gradient units."""
    results = [result for result in found.results if cell_of(result) == cell]
    if not any(found.curves.get(address(result)) for result in results):
        return None
    metric = str(results[0]["metric_name"])
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    look = styles(found.variants)
    placings: Mapping[str, Placed] = {
        "lower steps": whole_steps,
        "gradient units": in_gradients,
    }
    for column, (label, placed) in enumerate(placings.items()):
        for row, name in enumerate((metric, "loss")):
            panel: Axes = axes[row][column]
            for variant in found.variants:
                chosen = [result for result in results if result["variant"] == variant]
                band(panel, found, chosen, name, placed, look[variant], variant)
            tidy(panel)
        axes[1][column].set_xlabel(label)
    axes[0][0].set_ylabel(f"validation {metric}")
    axes[1][0].set_ylabel("validation loss")
    legend_below(figure, axes[1][0])
    return drawn(
        figure,
        f"{named(cell)}: learning curves",
        f"Validation {metric} and loss of every variant against lower steps and gradient units, "
        f"all phases one after the other; lines are means over the seeds, bands one standard "
        f"deviation.",
    )


def band(
    panel: Axes,
    found: Gathered,
    results: Sequence[Result],
    name: str,
    placed: Placed,
    look: Style,
    label: str,
) -> None:
    """Draw the mean over seeds, and one standard deviation, where more than half of them have one.

    A line breaks between two phases.
    """
    values = defaultdict[tuple[int, float], list[float]](list)
    for result in results:
        for x, line in placed(found.curves.get(address(result), ()), result):
            score = line["validation"].get(name)
            if score is not None:
                values[int(line.get("phase_index", 0)), x].append(float(score))
    kept = {place: v for place, v in values.items() if 2 * len(v) > len(results)}
    for phase in sorted({phase for phase, _ in kept}):
        xs = sorted(x for other, x in kept if other == phase)
        spread = [mean_and_spread(kept[phase, x]) for x in xs]
        panel.plot(
            xs,
            [mean for mean, _ in spread],
            color=look.color,
            linestyle=look.linestyle,
            marker=look.marker,
            markersize=4,
            label=f"{short(label)} (n={len(results)})"
            if phase == min(p for p, _ in kept)
            else None,
        )
        lower, upper = [m - s for m, s in spread], [m + s for m, s in spread]
        panel.fill_between(xs, lower, upper, color=look.color, alpha=0.15, linewidth=0)
        said = [
            f"{label}, after {x:,.0f}\n{name} {m:.4g} \u00b1 {s:.2g}"
            for x, (m, s) in zip(xs, spread, strict=True)
        ]
        tell(panel, xs, [m for m, _ in spread], said)


def pooled(results: Sequence[Result]) -> list[tuple[float, float, int]] | None:
    """Mean confidence, accuracy and count of every bin over the runs; None without any."""
    binned = [result["reliability"] for result in results if result.get("reliability")]
    if not binned:
        return None
    bins = []
    for same in zip(*binned, strict=True):
        count = sum(one["count"] for one in same)
        filled = [one for one in same if one["count"]]
        confidence, accuracy = (
            sum(one[name] * one["count"] for one in filled) / max(count, 1)
            for name in ("confidence", "accuracy")
        )
        bins.append((confidence, accuracy, count))
    return bins


def reliability(found: Gathered, cell: Cell) -> Drawing | None:
    """A reliability diagram for every variant, pooled over seeds, with the counts below."""
    panels: dict[str, tuple[list[tuple[float, float, int]], int]] = {}
    for variant in found.variants:
        chosen = [r for r in found.results if cell_of(r) == cell and r["variant"] == variant]
        bins = pooled(chosen)
        if bins is not None:
            panels[variant] = (bins, sum(bool(r.get("reliability")) for r in chosen))
    if not panels:
        return None
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.35 * columns + 0.4, 3.3 * rows), layout="constrained")
    ratios = [3, 1] * rows
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=ratios, sharex=True)
    look = styles(found.variants)
    for panel in axes.flat:
        panel.set_visible(False)
    for place, (variant, (bins, runs)) in enumerate(panels.items()):
        row, column = divmod(place, columns)
        top, bottom = axes[2 * row][column], axes[2 * row + 1][column]
        diagram(top, bottom, bins, look[variant])
        top.set_title(f"{short(variant)} (n={runs})", fontsize=9)
        if column == 0:
            top.set_ylabel("accuracy")
            bottom.set_ylabel("count")
        bottom.set_xlabel("confidence")
    return drawn(
        figure,
        f"{named(cell)}: reliability on the test split",
        "Accuracy against confidence in bins of equal width, pooled over the seeds, and how many "
        "predictions each bin holds; on the diagonal confidence is what it says.",
    )


def diagram(top: Axes, bottom: Axes, bins: Sequence[tuple[float, float, int]], look: Style) -> None:
    """One reliability diagram with its counts; larger dots hold more predictions."""
    filled = [(c, a, n) for c, a, n in bins if n]
    most = max((n for _, _, n in filled), default=1)
    top.set_visible(True)
    bottom.set_visible(True)
    top.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    top.plot([c for c, _, _ in filled], [a for _, a, _ in filled], color=look.color, linewidth=1)
    top.scatter(
        [c for c, _, _ in filled],
        [a for _, a, _ in filled],
        s=[8 + 50 * n / most for _, _, n in filled],
        color=look.color,
        marker=look.marker,
        zorder=3,
    )
    said = [f"confidence {c:.3f}\naccuracy {a:.3f}\n{n:,} predictions" for c, a, n in filled]
    tell(top, [c for c, _, _ in filled], [a for _, a, _ in filled], said)
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    width = 1 / len(bins)
    centres = [(k + 0.5) * width for k in range(len(bins))]
    bottom.bar(centres, [n for _, _, n in bins], width=0.9 * width, color=look.color)
    for axes in (top, bottom):
        tidy(axes)
        axes.tick_params(labelsize=8)
    bottom.tick_params(labelbottom=True)


def forest(rows: Sequence[Mapping[str, Any]], title: str) -> Drawing | None:
    """The mean differences of the pairs with their intervals, one above the other."""
    if not rows:
        return None
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        clear = row["better"] is not None
        color = COLOURS[0] if clear else SOFT
        if row["interval"] is not None:
            axes.plot(row["interval"], [place, place], color=color, linewidth=2)
        axes.plot(row["difference"], place, "o", color=color, mfc=color if clear else PAPER)
        ends = (
            "no interval"
            if row["interval"] is None
            else "{:+.4f} to {:+.4f}".format(*row["interval"])
        )
        said = f"{row['first']} less {row['second']}\n{row['difference']:+.4f}\n{ends}"
        tell(axes, [row["difference"]], [place], [said])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(
        range(len(rows)),
        [f"{short(row['first'])} less {short(row['second'])}" for row in reversed(rows)],
    )
    more = rows[0]["more_is_better"]
    axes.set_xlabel(f"difference ({'right' if more else 'left'} of zero: the first is better)")
    axes.margins(y=0.6 / max(len(rows), 1))
    tidy(axes)
    return drawn(
        figure,
        title,
        "Mean paired differences with their 95 % intervals; filled blue where the interval leaves "
        "zero out, hollow grey where it does not.",
    )
