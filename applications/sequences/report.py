"""What the finished sequences say: a table for the screen, a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table as ScreenTable

from applications.comparison.statistics import mean_interval, spread
from applications.options.sequences import VARIANTS
from applications.pages.drawing import COLOURS, LINE, Drawing, drawn, tell
from applications.pages.page import Section, page
from applications.pages.table import DASH, Entry, Mark, Table, entries, named
from applications.pages.writing import write_text

Line = Mapping[str, Any]
PAGE = "report.html"
MEASURES = ("last", "average", "forgetting")
REFERENCE = "sd_lora"
HEAD = ("variant", "orders", *MEASURES, f"last, less {REFERENCE}", "units", "seconds")
TITLE = "Accuracy in % over the orders of the classes"
MARKERS = "osD^vPX"
MEANINGS = (
    "last: of all classes when all tasks are learned; average: the mean of that over the moments "
    "after each task; forgetting: how far tasks are at the end below the best they ever were",
    "mean and standard deviation over the orders; the difference is paired by order, with a 95 % "
    "interval",
    "orders that are still to run are not in these numbers",
)


def summary_table(lines: Sequence[Line]) -> ScreenTable:
    """The summary for the screen."""
    made = ScreenTable(title=TITLE)
    for head in HEAD:
        made.add_column(head, justify="left" if head == "variant" else "right")
    for row in summary(lines):
        made.add_row(*(entry.text for entry in row))
    return made


def summary(lines: Sequence[Line]) -> list[list[Entry]]:
    """A row a variant: mean and standard deviation over the orders, and the paired difference to
    plain SD-LoRA in the last accuracy, with a 95 % interval.
    """
    return [summary_row(name, lines) for name in names_of(lines)]


def names_of(lines: Sequence[Line]) -> list[str]:
    """The variants there are, in the order of the table of variants."""
    there = {line["variant"] for line in lines}
    return [name for name in VARIANTS if name in there]


def summary_row(name: str, lines: Sequence[Line]) -> list[Entry]:
    """The row of one variant."""
    own = by_order(lines, name)
    found = entries(name, str(len(own)))
    for measure in MEASURES:
        values = spread([100 * line[measure] for line in own.values()])
        assert values is not None
        deviation = "" if values.std is None else f" \u00b1 {values.std:.1f}"
        found.append(Entry(f"{values.mean:.1f}{deviation}"))
    units, seconds = (fmean(o[what] for o in own.values()) for what in ("num_gradients", "seconds"))
    difference = Entry("") if name == REFERENCE else less_reference(own, by_order(lines, REFERENCE))
    return [*found, difference, *entries(f"{units:.0f}", f"{seconds:.0f}")]


def by_order(lines: Sequence[Line], name: str) -> dict[int, Line]:
    """The lines of a variant, by the numbers of their orders."""
    return {line["order"]: line for line in lines if line["variant"] == name}


def less_reference(own: Mapping[int, Line], reference: Mapping[int, Line]) -> Entry:
    """The difference in the last accuracy over the orders that both have, in points."""
    common = sorted(own.keys() & reference.keys())
    pairs = [100 * (own[k]["last"] - reference[k]["last"]) for k in common]
    if not pairs:
        return Entry("")
    text, found = f"{fmean(pairs):+.1f}", mean_interval([pairs])
    if found.low is None or found.high is None:
        return Entry(text)
    mark: Mark = "better" if found.low > 0 else "worse" if found.high < 0 else ""
    return Entry(f"{text} [{found.low:+.1f}, {found.high:+.1f}]", mark)


def write_page(folder: Path, lines: Sequence[Line]) -> None:
    """Write report.html: the summary, accuracy after each task, and each sequence's tasks."""
    settings = lines[-1]["settings"]
    orders = len({line["order"] for line in lines})
    text = page(
        title=f"{settings.get('task_name') or 'classes'} in {settings['num_tasks']} tasks",
        lead=f"{len(lines)} sequences of {orders} order{'s' * (orders > 1)} of the classes.",
        sections=[
            Section("Summary", tables=[Table(TITLE, HEAD, summary(lines))]),
            Section("After each task", drawings=[curves(lines)]),
            Section(
                "Tasks",
                text="Accuracy in % on the classes of each task, told apart from all that have "
                "come, after each task that was learned.",
                tables=[matrix(line) for line in lines],
            ),
            Section("Settings", tables=[named("Settings", settings, folded=True)]),
        ],
        notes=MEANINGS,
    )
    write_text(folder / PAGE, text)


def curves(lines: Sequence[Line]) -> Drawing:
    """The accuracy of all classes that have come, after each task: means over the orders."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names_of(lines)):
        seen = [line["seen"] for line in by_order(lines, name).values()]
        means = [100 * fmean(column) for column in zip(*seen, strict=True)]
        tasks = range(1, len(means) + 1)
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(tasks, means, marker=MARKERS[place % len(MARKERS)], color=colour, label=name)
        said = [f"{name}\ntask {t}: {m:.1f} %" for t, m in enumerate(means, start=1)]
        tell(axes, tasks, means, said)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=LINE, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="tasks learned", ylabel="accuracy on all that have come, %", ylim=(0, 101))
    figure.legend(frameon=False, loc="outside right upper", fontsize="small")
    text = "Accuracy on all classes that have come, after each task, mean over the orders."
    return drawn(figure, "Accuracy after each task", text)


def matrix(line: Line) -> Table:
    """The accuracy on each task, after each task, of one sequence."""
    count = len(line["accuracies"])
    rows = []
    for after, found in enumerate(line["accuracies"], start=1):
        known = [Entry(f"{100 * accuracy:.1f}", share=accuracy) for accuracy in found]
        rows.append([Entry(str(after)), *known, *[Entry(DASH)] * (count - len(found))])
    head = ["after task", *(f"task {number}" for number in range(1, count + 1))]
    return Table(f"order {line['order']}, {line['variant']}", head, rows, folded=True, fixed=True)
