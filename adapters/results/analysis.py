"""What an adapter has learned, layer by layer, as data; `adapters.figures` draws it.

Change of magnitude and of direction of every weight, the singular values of the change, its
effective rank, the singular values that BiLoRA has learned, how orthogonal the factors are. Works
for the adapters of this package and for PEFT's own LoRA, DoRA and AdaLoRA.

References: Liu et al. (2024), arXiv:2402.09353, section 3.2; Roy and Vetterli (2007), EUSIPCO.
"""

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, adapted_linears, at_least_one
from adapters.glue.factors import low_rank_factors
from adapters.glue.layers import BiLevelLinear
from adapters.glue.variants import BiLevelVariant
from adapters.methods.diagonal import DiagonalVariant

__all__ = [
    "Change",
    "LayerAnalysis",
    "Slope",
    "analyse",
    "change",
    "changes",
    "slope",
]

Axis = Literal["out", "in"]
AXES = ("out", "in")


@dataclass(frozen=True)
class Change:
    """How far one weight has moved, in magnitude and in direction."""

    layer: str
    checkpoint: str
    magnitude: float
    """``dM = mean_i | |W'_i| - |W_i| |``"""
    direction: float
    """``dD = mean_i (1 - cos(W'_i, W_i))``"""


@dataclass(frozen=True)
class Slope:
    """The least-squares line ``dM = slope dD + intercept`` with its bootstrap spread."""

    slope: float
    intercept: float
    std: float
    """Standard deviation of the resampled slopes."""
    low: float
    """Lower end of the interval that holds `level` of the resampled slopes."""
    high: float
    """Upper end of it."""
    level: float
    correlation: float
    """Pearson's, between dM and dD."""
    num_points: int
    num_groups: int
    """What was resampled: layers, or points."""
    num_samples: int
    """Resamples with a slope; those whose points all have one dD have none."""


@dataclass(frozen=True)
class LayerAnalysis:
    """One adapted layer."""

    layer: str
    change: Change
    singular_values: list[float]
    """Of ``W' - W``, descending, those above ``1e-6`` times the largest."""
    effective_rank: float
    """``exp(H(p))``, p the singular values over their sum and H the entropy; 0 for no change."""
    stable_rank: float
    """``|dW|_F^2 / |dW|_2^2``; 0 for no change."""
    learned: list[float] | None
    """The values ``g(d)`` of a BiLoRA-like adapter, in the order of the ranks."""
    row_orthogonality: float | None
    """``|A A^T - I|_F``; None where there are no factors or the rank is none."""
    column_orthogonality: float | None
    """``|B^T B - I|_F``"""
    row_coherence: float | None
    """The largest ``|cos|`` between two rows of A, whatever their lengths; zero rows left out."""
    column_coherence: float | None
    """The same for the columns of B."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, for JSON."""
        return asdict(self)


def change(
    before: Tensor, after: Tensor, *, layer: str = "", checkpoint: str = "", axis: Axis = "out"
) -> Change:
    """Return the change of one weight, DoRA's definition.

        dM = mean_i | |W'_i| - |W_i| |,    dD = mean_i (1 - cos(W'_i, W_i))

    over the rows of ``(out, in)`` weights, the vectors that PEFT's DoRA has magnitudes for, or over
    the columns with ``axis="in"``. Taken in float64, ``1 - cos`` as half the squared distance of
    the unit vectors, which keeps its digits where the change is small. Vectors that are zero before
    or after have no direction and are left out of dD.

    Args:
        before: W, ``(out, in)``.
        after: W', ``(out, in)``.
        layer: copied into the result.
        checkpoint: copied into the result.
        axis: ``"out"`` or ``"in"``.

    Raises:
        ValueError: if the shapes differ, or `axis` is unknown.

    Example:
        >>> import torch
        >>> from adapters.results.analysis import change
        >>> W = torch.eye(2)
        >>> change(W, 3 * W)
        Change(layer='', checkpoint='', magnitude=2.0, direction=0.0)

    Reference: Liu et al. (2024), arXiv:2402.09353, equations 3 and 4.
    """
    if before.shape != after.shape or before.dim() != 2:
        raise ValueError(
            f"before and after must be matrices of one shape, got {tuple(before.shape)} and "
            f"{tuple(after.shape)}"
        )
    if axis not in AXES:
        raise ValueError(f"axis must be one of {AXES}, got {axis!r}")
    W, V = (weight.detach().double() for weight in (before, after))
    if axis == "in":
        W, V = W.T, V.T
    old, new = W.norm(dim=1), V.norm(dim=1)
    kept = (old > 0) & (new > 0)
    units = W[kept] / old[kept, None] - V[kept] / new[kept, None]
    cosines = 0.5 * units.square().sum(1)
    direction = cosines.mean().item() if len(cosines) else 0.0
    return Change(layer, checkpoint, (new - old).abs().mean().item(), direction)


def changes(model: nn.Module, *, checkpoint: str = "", axis: Axis = "out") -> list[Change]:
    """Return the change of every adapted weight by the active adapters, with dropout and masks off.

    Call it at several points of a run, with another `checkpoint` each, and collect the lists for
    `slope` and `adapters.results.figures.plot_changes`. The weights are taken from each layer in
    turn, in float64: a copy of one layer and a matrix ``(in, in)`` are in memory.

    Raises:
        ValueError: if the model has no adapted linear layer, or an adapter is merged.

    Example:
        >>> import torch
        >>> from adapters import BiLoraConfig, changes
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> (found,) = changes(model)  # B starts at zero
        >>> found.layer, found.magnitude, abs(round(found.direction, 6))
        ('base_model.model.0', 0.0, 0.0)
    """
    return [
        change(before, after, layer=name, checkpoint=checkpoint, axis=axis)
        for name, before, after, _ in _weights(model)
    ]


def slope(
    points: Sequence[Change],
    *,
    by: Literal["layer", "point"] = "layer",
    num_samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Slope:
    """Return the slope of dM against dD over layers and checkpoints, with its spread.

    The papers give the slope alone; over few points with nearly one dD it says little, so here it
    comes with a percentile bootstrap interval.

    Args:
        points: at least three, not all with one dD.
        by: what is resampled: whole layers, since checkpoints of one layer are not independent, or
            single points.
        num_samples: how often it is resampled.
        level: of the interval, between 0 and 1.
        seed: of the resampling.

    Raises:
        ValueError: if there are fewer than three points or two groups, all have one dD, or an
            option is out of range.

    Example:
        >>> from adapters.results.analysis import Change, slope
        >>> points = [Change(str(i), "", 1 + 2.0 * i, float(i)) for i in range(5)]
        >>> found = slope(points)
        >>> [round(value, 6) for value in (found.slope, found.low, found.high)]
        [2.0, 2.0, 2.0]
    """
    if by not in ("layer", "point"):
        raise ValueError(f"by must be 'layer' or 'point', got {by!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")
    groups: dict[object, list[tuple[float, float]]] = {}
    for i, point in enumerate(points):
        key = point.layer if by == "layer" else i
        groups.setdefault(key, []).append((point.direction, point.magnitude))
    whole = _line([pair for group in groups.values() for pair in group])
    if len(points) < 3 or len(groups) < 2 or whole is None:
        raise ValueError(
            f"points must be at least three, in two {by}s, with more than one dD, got "
            f"{len(points)} in {len(groups)}"
        )
    generator, pool = random.Random(seed), list(groups.values())
    found = []
    for _ in range(num_samples):
        drawn = _line([pair for group in generator.choices(pool, k=len(pool)) for pair in group])
        if drawn is not None:
            found.append(drawn[0])
    slopes = torch.tensor(found, dtype=torch.float64)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(slopes, ends).tolist()
    return Slope(
        slope=whole[0],
        intercept=whole[1],
        std=slopes.std(correction=0).item(),
        low=low,
        high=high,
        level=level,
        correlation=whole[2],
        num_points=len(points),
        num_groups=len(groups),
        num_samples=len(found),
    )


def _line(pairs: list[tuple[float, float]]) -> tuple[float, float, float] | None:
    """Return slope, intercept and correlation, or None where all abscissae are one."""
    x, y = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    x_mean, y_mean = x.mean(), y.mean()
    dx, dy = x - x_mean, y - y_mean
    xx, xy, yy = dx @ dx, dx @ dy, dy @ dy
    if not xx > (1e-12 * x.abs().max()) ** 2:
        return None
    b = xy / xx
    correlation = xy / (xx * yy).sqrt() if yy > 0 else torch.zeros(())
    return b.item(), (y_mean - b * x_mean).item(), correlation.item()


def analyse(
    model: nn.Module, *, checkpoint: str = "", axis: Axis = "out"
) -> dict[str, LayerAnalysis]:
    """Return what the active adapters have learned, by module name.

    Takes a singular value decomposition of every change ``W' - W``, in float64.

    Raises:
        ValueError: as `changes`.

    Example:
        >>> import torch
        >>> from adapters import BiLoraConfig
        >>> from adapters.results.analysis import analyse
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> found = analyse(model)["base_model.model.0"]
        >>> found.learned, found.effective_rank  # B starts at zero
        ([0.5, 0.5], 0.0)
    """
    return {
        name: _analysis(name, before, after, layer, checkpoint, axis)
        for name, before, after, layer in _weights(model)
    }


def _analysis(
    name: str, before: Tensor, after: Tensor, layer: nn.Module, checkpoint: str, axis: Axis
) -> LayerAnalysis:
    values = torch.linalg.svdvals(after - before)
    values = values[values > 1e-6 * values[0]]
    if len(values):
        shares = values / values.sum()
        effective = (-(shares * shares.log()).sum()).exp().item()
        stable = (values.square().sum() / values[0].square()).item()
    else:
        effective = stable = 0.0
    A, B = low_rank_factors(layer) or (None, None)
    return LayerAnalysis(
        layer=name,
        change=change(before, after, layer=name, checkpoint=checkpoint, axis=axis),
        singular_values=values.tolist(),
        effective_rank=effective,
        stable_rank=stable,
        learned=_learned(layer),
        row_orthogonality=None if A is None else _distance(A),
        column_orthogonality=None if B is None else _distance(B.T),
        row_coherence=None if A is None else _coherence(A),
        column_coherence=None if B is None else _coherence(B.T),
    )


def _weights(model: nn.Module) -> Iterable[tuple[str, Tensor, Tensor, nn.Module]]:
    """Return name, frozen weight, weight in use and layer of every adapted linear layer, in
    float64.

    The weight in use is read off a copy of the layer by its outputs for the unit vectors.
    """
    found = at_least_one(
        adapted_linears(model), model, what="adapted linear layer", config="LoraConfig"
    )
    for name, layer in found:
        if layer.merged:
            raise ValueError(
                f"module {name!r} has merged adapters, so that its frozen weight is not known; "
                "call model.unmerge_adapter() first"
            )
        alone = copy.deepcopy(layer).double().eval()
        for _, _, _, variant in adapted_layers(alone, BiLevelVariant):
            if variant.masks is not None:
                variant.masks.switch = False
        base: Any = alone.get_base_layer()
        with torch.no_grad():
            unit = torch.eye(alone.in_features, dtype=torch.float64, device=base.weight.device)
            zero = torch.zeros_like(unit[:1])
            before = (base(unit) - base(zero)).T
            after = (alone(unit) - alone(zero)).T
        yield name, before, after, layer


def _learned(layer: nn.Module) -> list[float] | None:
    if not isinstance(layer, BiLevelLinear):
        return None
    for adapter in layer.active_adapters:
        variant = layer.lora_variant.get(adapter)
        if isinstance(variant, DiagonalVariant):
            values: list[float] = variant.singular_values(layer, adapter).detach().tolist()
            return values
    return None


def _distance(rows: Tensor) -> float:
    eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return float((rows @ rows.T - eye).norm())


def _coherence(rows: Tensor) -> float | None:
    norms = rows.norm(dim=1)
    rows = rows[norms > 0] / norms[norms > 0, None]
    if len(rows) < 2:
        return None
    cosines = (rows @ rows.T).abs()
    return float(cosines.fill_diagonal_(0).max())
