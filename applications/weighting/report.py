"""What the learned weights look like: a table, a bar chart, a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from applications.pages.drawing import COLOURS, INK, SOFT, Drawing, drawn, short, tell
from applications.pages.page import Section, page
from applications.pages.table import Entry, Mark, Table, entries, named, shown
from applications.pages.writing import write_whole
from applications.weighting.explanation import Pull
from applications.weighting.mixture import Weighed, probabilities
from applications.weighting.pull import Sign

Explained = Mapping[str, Mapping[str, Sequence[Pull]]]
HEAD = ("source", "examples", "weight", "95 % interval", "share of the mixture")
SIGNS = ("source", "pull", "95 % interval", "agreement")
PULL = (
    "Pull: what a larger share of the source, where all weigh alike, would take off the loss on "
    "the target; below zero it would raise it. Agreement: the share of its labels (of decimals, "
    "the correlation) that a model of the target alone predicts."
)
COMPARED = ("method", "test", "weights minus it", "95 % interval", "seconds")


def weight_rows(sources: Sequence[Weighed]) -> list[list[str]]:
    """A row a source, for the screen and the page."""
    share = probabilities(sources)
    return [
        [
            source.name,
            shown(source.size),
            f"{source.weight:.2f}",
            interval(source.low, source.high),
            f"{100 * share[source.name]:.1f} %",
        ]
        for source in sources
    ]


def sign_rows(signs: Mapping[str, Sign]) -> list[list[Entry]]:
    """A row a source: its pull, marked where the whole interval is on one side, and agreement."""
    found = []
    for name, sign in signs.items():
        mark: Mark = "worse" if sign.harms else "better" if sign.low > 0 else ""
        found.append(
            [
                Entry(name),
                Entry(f"{sign.pull:+.3f}", mark),
                Entry(interval(sign.low, sign.high, 3), mark),
                Entry(f"{sign.agreement:.2f}"),
            ]
        )
    return found


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """Two ends in words; a dash where there are none."""
    if low is None or high is None:
        return shown(None)
    return f"{low:.{digits}f} to {high:.{digits}f}"


Bar = tuple[str, float, float | None, float | None]
"""A name, a value, and the ends of its interval where there is one."""


def weight_bars(sources: Sequence[Weighed]) -> Drawing:
    """The weights with their intervals."""
    text = "The weight of each source and its 95 % interval; the line is a weight of one."
    found = [(source.name, source.weight, source.low, source.high) for source in sources]
    return bars(found, 1, "weight (1: as much as its size)", "Weights", text)


def pull_bars(signs: Mapping[str, Sign]) -> Drawing:
    """The pulls with their intervals."""
    text = "The pull on each source and its 95 % interval; left of the line a source harms."
    found = [(name, sign.pull, sign.low, sign.high) for name, sign in signs.items()]
    return bars(found, 0, "fall of the loss on the target with its share", "Pull", text)


def bars(found: Sequence[Bar], line: float, label: str, title: str, text: str) -> Drawing:
    """Values with their intervals as a bar chart, largest first, and a line across it."""
    ordered = sorted(found, key=lambda bar: bar[1])
    figure = Figure(figsize=(7, 1 + 0.26 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    values = [value for _, value, _, _ in ordered]
    axes.barh([short(name) for name, _, _, _ in ordered], values, color=COLOURS[0])
    for place, (_, _, low, high) in enumerate(ordered):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=INK, linewidth=1)
    axes.axvline(line, color=SOFT, linewidth=0.8, linestyle="--")
    said = [f"{name}\n{value:.3g} ({interval(low, high)})" for name, value, low, high in ordered]
    tell(axes, values, range(len(values)), said)
    axes.set(xlabel=label)
    return drawn(figure, title, text)


def curve(values: Sequence[float], steps: int) -> Drawing:
    """The cross-validated loss over the upper steps."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(values)), values, marker=".", color=COLOURS[0])
    axes.axvline(steps, color=SOFT, linewidth=0.8, linestyle="--")
    said = [f"{n} upper steps\n{value:.4g}" for n, value in enumerate(values)]
    tell(axes, range(len(values)), values, said)
    axes.set(xlabel="upper steps", ylabel="held-out loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    last = ", the most that were tried" if steps == len(values) - 1 else ""
    text = f"The loss of held-out target examples; it is least after {steps} upper steps{last}."
    if steps in (1, 2):
        text += " Adam's first steps are all of one size: intervals after so few are narrow."
    return drawn(figure, "Steps", text)


def compared_rows(controls: Sequence[Mapping[str, Any]]) -> list[list[Entry]]:
    """A row a control beside the learned weights."""
    found = []
    for row in controls:
        low, high = row["low"], row["high"]
        mark: Mark = ""
        if low is not None and high is not None and (low > 0 or high < 0):
            mark = "better" if low > 0 else "worse"
        difference = row["difference"]
        found.append(
            [
                Entry(row["method"]),
                Entry(shown(row["test_metric"])),
                Entry(shown(None) if difference is None else f"{difference:+.3f}", mark),
                Entry(interval(low, high, 3), mark),
                Entry(f"{row['seconds']:.1f}"),
            ]
        )
    return found


def write_page(
    folder: Path,
    *,
    title: str,
    lead: str,
    sources: Sequence[Weighed],
    signs: Mapping[str, Sign],
    controls: Sequence[Mapping[str, Any]],
    explained: Explained,
    steps: tuple[Sequence[float], int] | None,
    options: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Write weights.html and the bar chart, weights.svg."""
    chart = weight_bars(sources)
    table = Table("Weights", HEAD, [entries(*row) for row in weight_rows(sources)])
    sections = [
        Section("Weights", tables=[table], drawings=[chart]),
        Section(
            "Which sources are bad",
            text=PULL,
            tables=[Table("Pull and agreement", SIGNS, sign_rows(signs))] if signs else [],
            drawings=[pull_bars(signs)] if signs else [],
        ),
        Section("Upper steps", drawings=[] if steps is None else [curve(*steps)]),
        Section(
            "Controls",
            text="On frozen features, all with the same target examples. The interval is that of "
            "the mean difference over the test examples, each method against the learned weights.",
            tables=[Table("Controls", COMPARED, compared_rows(controls))] if controls else [],
        ),
        Section("Examples that pull", tables=[pull_table(n, w) for n, w in explained.items()]),
        Section("Options", tables=[named("Options", options, folded=True)]),
    ]
    text = page(title=title, lead=lead, sections=sections, notes=notes, notes_title="Data")
    write_whole(folder / "weights.html", lambda draft: draft.write_text(text, encoding="utf-8"))
    write_whole(folder / "weights.svg", lambda draft: draft.write_text(chart.svg, encoding="utf-8"))


def pull_table(name: str, ways: Mapping[str, Sequence[Pull]]) -> Table:
    """The examples of one source that pull most."""
    rows = [
        entries(way, pull.text, pull.answer, f"{pull.pull:+.3g}")
        for way, found in ways.items()
        for pull in found
    ]
    return Table(name, ("pull", "text", "answer", "strength"), rows, folded=True, prose=True)
