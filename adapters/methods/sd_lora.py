"""SD-LoRA: one direction a task, old ones frozen, the magnitudes of all of them trained.

``W = W0 + s (sum_{k<t} c_k D_k + c_t B_t A_t)``, ``D_k = B_k A_k / n_k``: while task t is trained,
the directions D_k of earlier tasks stay as they are, and c_1, ..., c_t and the current A, B move.
`next_task` freezes the current direction and begins another; it changes no output.

On two levels, the magnitudes belong to a small memory of old tasks and the current direction to the
new one: ``min_c L(memory; A*(c), B*(c), c)`` with ``A*, B* = argmin L(new task)``.

Reference: Wu et al. (2025), arXiv:2501.13198, first called S-LoRA.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.checks import check_fraction, check_whole
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.factors import Factors, LoraLayer, factors, restart_factors
from adapters.glue.layers import BiLevelLinear
from adapters.glue.norms import widen
from adapters.glue.registry import register
from adapters.glue.sharing import SharingModel, freeze, layer_of
from adapters.glue.variants import add_parameter
from adapters.methods.grouped import GroupedVariant

__all__ = ["SdLoraConfig", "next_task"]

LEVELS = ("lower", "upper")
NORMS = ("product", "factors")
SHARES = ("model", "layer")
OLD = ("lora_old_A", "lora_old_B")


class SdLoraVariant(GroupedVariant):
    """One adapter of one layer, ``dW = s sum_k c_k D_k``, the last direction not normalised."""

    container = "lora_task_magnitudes"
    shared = ("lora_task_magnitudes",)
    two_levels = "SdLoraConfig(magnitude_level='upper')"

    def __init__(self, config: "SdLoraConfig") -> None:
        sizes = [*config.old_ranks, config.r]
        super().__init__(_unchanged, sizes=sizes, start=1.0, level=config.magnitude_level)
        self.share = config.share

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Add magnitudes to the layer, and room for the directions of a checkpoint."""
        GroupedVariant.init(module, adapter_name, **kwargs)
        variant: Any = module.lora_variant[adapter_name]
        pair, old = factors(module, adapter_name), sum(variant.sizes[:-1])
        if old:
            # In the precision that PEFT keeps adapters in: a cast would set frozen values free.
            dtype = widen(pair.A.dtype)
            A = pair.A.new_zeros(old, pair.A.shape[1], dtype=dtype)
            B = pair.B.new_zeros(len(pair.B), old, dtype=dtype)
            _keep(module, adapter_name, A, B)

    @property
    def containers(self) -> tuple[str, ...]:
        """The magnitudes and the old directions."""
        return (self.container, *OLD)

    def group(self, name: str, layer: LoraLayer, adapter: str) -> str:
        """Return the model, or the block of the transformer that the module is in."""
        return "" if self.share == "model" else layer_of(name)

    def side_by_side(self, layer: LoraLayer, adapter: str, pair: Factors) -> Factors:
        """Return the factors of all directions, the current one last."""
        if len(self.sizes) == 1:
            return pair
        A, B = (getattr(layer, name)[adapter].to(pair.A.dtype) for name in OLD)
        return pair._replace(A=torch.cat([A, pair.A]), B=torch.cat([B, pair.B], 1))


@dataclass
class SdLoraConfig(BiLevelConfig):
    """Configuration of SD-LoRA, for ``peft.get_peft_model``; every option of ``LoraConfig`` and
    more.

    In the first task it is plain LoRA with a magnitude that starts at 1. Call `next_task` between
    tasks. Trains q and v in the paper, rank 10.

    Args:
        share: one vector of magnitudes for the ``"model"``, the paper's, or one a ``"layer"`` of
            the transformer.
        normalise: what a direction is divided by when its task is over. ``"product"``, the paper's:
            ``|B A|``; ``"factors"``, the authors' code's: ``|B| |A|``. ``Differs from the paper``:
            the norm is that of all layers that share the magnitude, taken as one matrix, since one
            magnitude cannot make up for a norm of each.
        magnitude_level: ``"lower"``, the paper's: one level; ``"upper"``: other data fit the
            magnitudes (``Differs from the paper``).
        old_ranks: the ranks of the directions of earlier tasks, which `next_task` keeps.

    Example:
        >>> from adapters import SdLoraConfig, next_task
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, SdLoraConfig(r=2, target_modules=["0"]))
        >>> _ = torch.nn.init.ones_(model.base_model.model[0].lora_B["default"].weight)  # training
        >>> next_task(model)
        2

    Reference: Wu et al. (2025), arXiv:2501.13198.
    """

    share: Literal["model", "layer"] = field(
        default="model", metadata={"help": "Magnitudes of the 'model' or of each 'layer'."}
    )
    normalise: Literal["product", "factors"] = field(
        default="product", metadata={"help": "Divide by the norm of the 'product' or 'factors'."}
    )
    magnitude_level: Literal["lower", "upper"] = field(
        default="lower",
        metadata={
            "help": "The level of the magnitudes: 'lower' or 'upper'.",
            "is_lora_variant": True,
        },
    )
    old_ranks: list[int] = field(
        default_factory=list, metadata={"help": "The ranks of earlier tasks' directions."}
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"magnitude_level"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SD_LORA
        for option, known in (
            ("share", SHARES),
            ("normalise", NORMS),
            ("magnitude_level", LEVELS),
        ):
            if getattr(self, option) not in known:
                raise ValueError(f"{option} must be one of {known}, got {getattr(self, option)!r}")
        if self.rank_pattern:
            raise ValueError(
                f"rank_pattern cannot be combined with SdLoraConfig, got {self.rank_pattern!r}: "
                "the rank belongs to a task; hand it to next_task"
            )

    def variant(self) -> SdLoraVariant:
        """Return what the method adds to a layer."""
        return SdLoraVariant(self)


SD_LORA = register("SD_LORA", SdLoraConfig, SharingModel)


class _Direction(NamedTuple):
    """A direction in one layer, in float64."""

    A: Tensor
    B: Tensor

    def dot(self, other: "_Direction") -> Tensor:
        """Return ``<B A, B' A'>``, from matrices of the size of the ranks alone."""
        return ((self.B.T @ other.B) * (self.A @ other.A.T)).sum()


@torch.no_grad()
def next_task(
    model: nn.Module,
    adapter_name: str | None = None,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
) -> int:
    """Freeze the current direction, begin another; return the number of the task that now begins.

    The direction becomes ``D_t = B_t A_t / n_t`` and its magnitude ``c_t n_t``; the new one starts
    as LoRA does, A at random, B = 0, magnitude 1. What the model computes stays the same.
    Magnitudes are a new parameter (and so are A and B of another rank): build a new optimizer.

    Args:
        model: a model with an SD-LoRA adapter, after the training of a task.
        adapter_name: the adapter; the active one if None.
        rank: the rank of the new direction; as it is if None. The paper's variant RR lowers it.
        tolerance: the paper's variant KD (9e-4 there): where the old directions span the current
            one up to this, ``min_a |D_t - sum_k a_k D_k|^2 <= tolerance |D_t|^2`` for every vector
            of magnitudes, it is dropped and ``c_k`` grows by ``c_t n_t a_k``; the output then moves
            by what is left over. None: keep every direction.

    Raises:
        ValueError: if the model has no such adapter, several, a merged or an untrained one, or
            ``init_lora_weights=False``.

    Example:
        >>> from adapters import SdLoraConfig, next_task
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, SdLoraConfig(r=2, target_modules=["0"]))
        >>> _ = torch.nn.init.ones_(model.base_model.model[0].lora_B["default"].weight)  # training
        >>> before = model(torch.ones(1, 4))
        >>> next_task(model, rank=1)
        2
        >>> bool(torch.allclose(model(torch.ones(1, 4)), before, atol=1e-6))
        True

    Reference: Wu et al. (2025), arXiv:2501.13198.
    """
    adapter, config, groups = _groups(model, adapter_name)
    if rank is not None:
        check_whole("rank", rank)
    if tolerance is not None:
        check_fraction("tolerance", tolerance)
    if config.init_lora_weights is False:
        raise ValueError(
            "init_lora_weights must not be False for next_task: B would not start at zero; set "
            "model.peft_config[adapter].init_lora_weights = True"
        )
    norms = [_norm(members, adapter, config.normalise) for members in groups]
    if not any(norms):
        raise ValueError(
            f"adapter {adapter!r} has B = 0 everywhere: train the task before next_task"
        )
    parts = [
        _spanned(members, adapter, norm)
        for members, norm in zip(groups, norms, strict=True)
        if tolerance is not None and config.old_ranks
    ]
    dropped = bool(parts) and all(rest <= (tolerance or 0) for _, rest in parts)
    following = _following(config, config.r if rank is None else rank, dropped)
    for index, (members, norm) in enumerate(zip(groups, norms, strict=True)):
        _grow_magnitudes(members, adapter, config, norm, parts[index][0] if dropped else None)
        for layer, variant in members:
            if not dropped:
                _keep_direction(layer, variant, adapter, norm, beside=bool(config.old_ranks))
            _begin_direction(layer, adapter, config, following.r)
            variant.sizes = [*variant.sizes[: -1 if dropped else None], following.r]
    _configs(model)[adapter] = following
    return len(following.old_ranks) + 1


Members = list[tuple[BiLevelLinear, SdLoraVariant]]


def _groups(model: nn.Module, adapter_name: str | None) -> tuple[str, Any, list[Members]]:
    found = at_least_one(
        adapted_layers(model, SdLoraVariant, adapter_name),
        model,
        what="active SD-LoRA adapter",
        config="SdLoraConfig",
    )
    adapters = sorted({adapter for _, adapter, _, _ in found})
    if len(adapters) > 1:
        raise ValueError(f"adapter_name must be given, several adapters are active: {adapters}")
    groups: dict[int, Members] = {}
    for name, adapter, layer, variant in found:
        if adapter in layer.merged_adapters:
            raise ValueError(
                f"adapter {adapter!r} is merged in {name!r}; call model.unmerge_adapter() before "
                "next_task"
            )
        groups.setdefault(id(variant.keeper(layer)), []).append((layer, variant))
    return adapters[0], _configs(model)[adapters[0]], list(groups.values())


def _following(config: Any, rank: int, dropped: bool) -> Any:
    """Return the options of the task that begins: its rank, at the scale that there was."""
    root: Any = math.sqrt if config.use_rslora else float
    factor = root(rank) / root(config.r)
    found = copy.copy(config)
    found.lora_alpha *= factor
    found.alpha_pattern = {k: v * factor for k, v in config.alpha_pattern.items()}
    found.old_ranks = [*config.old_ranks, *([] if dropped else [config.r])]
    found.r = rank
    return found


def _grow_magnitudes(
    members: Members, adapter: str, config: Any, norm: float, spanned: Tensor | None
) -> None:
    """Give the layers of a group a magnitude more, 1; the current one goes to its direction, or to
    the older ones that span it.
    """
    owner, variant = members[0]
    present = variant.parameters(owner, adapter)
    c = present.double()
    if spanned is None:
        old = torch.cat([c[:-1], c[-1:] * norm])
    else:
        old = c[:-1] + c[-1] * norm * spanned.to(c.device)
    grown = torch.cat([old, old.new_ones(1)]).to(present.dtype)
    new = nn.Parameter(grown, requires_grad=present.requires_grad)
    keeper: Any = variant.keeper(owner)
    getattr(keeper, variant.container)[adapter] = new
    watch = config.joint_watch() if variant.level == "upper" else None
    if watch is not None:
        watch.over(new, "upper")


def _keep_direction(
    layer: BiLevelLinear, variant: SdLoraVariant, adapter: str, norm: float, *, beside: bool
) -> None:
    """Keep the current direction of a layer, of length 1 in its group, `beside` older ones."""
    pair = factors(layer, adapter)
    unit = (pair.B.double() / max(norm, torch.finfo(torch.float64).tiny)).to(pair.B)
    kept = pair._replace(A=pair.A.clone(), B=unit)
    if beside:
        kept = variant.side_by_side(layer, adapter, kept)
    _keep(layer, adapter, kept.A, kept.B)


def _begin_direction(layer: BiLevelLinear, adapter: str, config: Any, rank: int) -> None:
    """Start the factors of a layer anew, of the `rank` asked for."""
    restart_factors(layer, adapter, config.init_lora_weights, rank=rank)
    watch = config.joint_watch() if config.magnitude_level == "upper" else None
    if watch is not None and rank != config.r:  # A and B are new parameters
        for factor in (layer.lora_A[adapter], layer.lora_B[adapter]):
            watch.over(factor.weight, "lower")


def _configs(model: Any) -> dict[str, Any]:
    configs: dict[str, Any] = model.peft_config
    return configs


def _current(layer: LoraLayer, adapter: str) -> _Direction:
    pair = factors(layer, adapter)
    return _Direction(pair.A.double(), pair.B.double())


def _norm(members: Members, adapter: str, normalise: str) -> float:
    """Return ``|B A|`` or ``|B| |A|`` over the layers of one group."""
    total = 0.0
    for layer, _ in members:
        now = _current(layer, adapter)
        if normalise == "product":
            total += float(now.dot(now))
        else:
            total += float(now.A.square().sum() * now.B.square().sum())
    return math.sqrt(max(total, 0.0))


def _spanned(members: Members, adapter: str, norm: float) -> tuple[Tensor, float]:
    """Return the old directions' coefficients nearest to the current one, and what is left.

    The least squares of ``|D_t - sum_k a_k D_k|^2``, as a part of ``|D_t|^2``.
    """
    sizes = members[0][1].sizes[:-1]
    gram = torch.zeros(len(sizes), len(sizes), dtype=torch.float64)
    cross = torch.zeros(len(sizes), dtype=torch.float64)
    whole = 0.0
    for layer, _ in members:
        old_A, old_B = (getattr(layer, name)[adapter].double() for name in OLD)
        blocks = zip(old_A.split(sizes), old_B.split(sizes, 1), strict=True)
        old = [_Direction(A, B) for A, B in blocks]
        now = _current(layer, adapter)
        gram += torch.stack([torch.stack([a.dot(b) for b in old]) for a in old]).cpu()
        cross += torch.stack([each.dot(now) for each in old]).cpu()
        whole += float(now.dot(now))
    if whole == 0:
        return torch.zeros_like(cross), 0.0
    found = torch.linalg.lstsq(gram, cross[:, None], driver="gelsd").solution[:, 0]
    left = whole - 2 * float(found @ cross) + float(found @ gram @ found)
    return found / norm, left / whole


def _keep(layer: LoraLayer, adapter: str, A: Tensor, B: Tensor) -> None:
    for name, value in zip(OLD, (A, B), strict=True):
        add_parameter(layer, name, adapter, value)
    freeze(layer, adapter, *OLD)


def _unchanged(magnitudes: Tensor) -> Tensor:
    return magnitudes
