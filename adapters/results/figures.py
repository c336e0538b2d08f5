"""Figures of what an adapter has learned; matplotlib draws them, where it is installed.

They are ``matplotlib.figure.Figure`` objects, without a global state: ``figure.savefig(path)``.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from adapters.results.analysis import Change, LayerAnalysis, Slope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_changes", "plot_spectra"]

MARKERS = "osD^v<>pPX*hH8d"


def plot_changes(points: Sequence[Change], *, line: Slope | None = None) -> "Figure":
    """Return a figure of dM against dD, a colour a checkpoint, a marker a layer.

    Args:
        points: from `changes`, at one or several checkpoints.
        line: from `slope`: drawn with its interval.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no points.
    """
    if not points:
        raise ValueError("points must hold at least one change, got none")
    figure = _figure(1, width=6.4)
    axes = figure.axes[0]
    layers = list(dict.fromkeys(point.layer for point in points))
    checkpoints = list(dict.fromkeys(point.checkpoint for point in points))
    for i, checkpoint in enumerate(checkpoints):
        for point in points:
            if point.checkpoint == checkpoint:
                marker = MARKERS[layers.index(point.layer) % len(MARKERS)]
                axes.scatter(point.direction, point.magnitude, color=f"C{i}", marker=marker, s=28)
        axes.scatter([], [], color=f"C{i}", label=checkpoint or "now", s=28)
    if len(layers) <= len(MARKERS):
        for layer, marker in zip(_short(layers), MARKERS, strict=False):
            axes.scatter([], [], color="0.6", marker=marker, label=layer, s=28)
    if line is not None:
        x = torch.tensor([point.direction for point in points], dtype=torch.float64)
        y = torch.tensor([point.magnitude for point in points], dtype=torch.float64)
        at = torch.stack([x.min(), x.mean(), x.max()])  # the interval is narrow in the middle
        slopes = torch.tensor([line.slope, line.low, line.high], dtype=torch.float64)
        lines = y.mean() + torch.outer(slopes, at - x.mean())
        label = f"slope {line.slope:.3g} [{line.low:.3g}, {line.high:.3g}]"
        axes.plot(at, lines[0], color="0.3", linewidth=1, label=label)
        low, high = lines.min(0).values, lines.max(0).values
        axes.fill_between(at, low, high, color="0.3", alpha=0.12, linewidth=0)
    axes.set_xlabel("change of direction, dD")
    axes.set_ylabel("change of magnitude, dM")
    axes.locator_params(nbins=5)
    axes.ticklabel_format(scilimits=(-2, 3))
    figure.legend(frameon=False, fontsize=7, loc="outside right center")
    return figure


def plot_spectra(found: Mapping[str, LayerAnalysis]) -> "Figure":
    """Return a figure of the singular values of every layer's change, with the effective ranks;
    and, where an adapter has learned singular values, of those.

    Args:
        found: from `analyse`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no layers.
    """
    if not found:
        raise ValueError("found must hold at least one layer, got none")
    learned = {name: one.learned for name, one in found.items() if one.learned is not None}
    figure = _figure(2 if learned else 1)
    from matplotlib.ticker import MaxNLocator

    names = _short(list(found))
    for i, one in enumerate(found.values()):
        label = f"{names[i]} ({one.effective_rank:.1f})"
        ranks = range(1, len(one.singular_values) + 1)
        figure.axes[0].plot(ranks, one.singular_values, marker=".", color=f"C{i % 10}", label=label)
    figure.axes[0].set_yscale("log")
    figure.axes[0].set_title("of the change of the weight (effective rank)", fontsize=9)
    if learned:
        for i, values in enumerate(learned.values()):
            ordered = sorted(values, reverse=True)
            ranks = range(1, len(ordered) + 1)
            figure.axes[1].plot(ranks, ordered, marker=".", color=f"C{i % 10}")
        figure.axes[1].set_title("learned, g(d)", fontsize=9)
    for axes in figure.axes:
        axes.set_xlabel("rank")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[0].set_ylabel("singular value")
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


def _figure(columns: int, *, width: float = 4.8) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib draws the figures and is not installed: pip install matplotlib; "
            "the numbers come from changes, slope and analyse without it"
        ) from error
    figure = Figure(figsize=(width * columns, 3.6), layout="constrained")
    figure.subplots(1, columns)
    return figure


def _short(names: list[str]) -> list[str]:
    """Return the names without the parts that all of them begin with."""
    parts = [name.split(".") for name in names]
    common = 0
    while (
        len(parts) > 1
        and all(len(p) > common + 1 for p in parts)
        and (len({p[common] for p in parts}) == 1)
    ):
        common += 1
    if len(parts) == 1:
        common = len(parts[0]) - 1
    return [".".join(p[common:]) for p in parts]
