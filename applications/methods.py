"""What each fine-tuning method is, one row a method, and each hypergradient method, one row each.

The options, the graphs, the phases and the page ask these rows; nothing else knows a method by its
name. A new method is a new row, and an option where it has one of its own.

What a row makes is named and imported when it is made: the options and ``--help`` read the rows
without torch and PEFT, which take seconds to import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from applications.errors import UsageError

if TYPE_CHECKING:
    from peft import AdaLoraConfig, LoraConfig, PeftConfig
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from adapters import Allocation, BeamSearch, BiLoraConfig, MoleConfig
    from blo import Method

Penalty: TypeAlias = "Callable[[nn.Module], Tensor]"
Hook: TypeAlias = "Callable[[Optimizer, Any, int, Optimizer | None], Any]"
Retraining = Literal["none", "values", "ranks"]
Control = Literal["none", "joint", "two_stage", "same_data", "lower_data_only", "upper_data_only"]
ONE_LEVEL_CONTROLS: tuple[Control, ...] = (
    "none",
    "two_stage",
    "lower_data_only",
    "upper_data_only",
)
BI_LEVEL_CONTROLS: tuple[Control, ...] = ("none", "joint", "two_stage", "same_data")


def later(module: str, name: str) -> Callable[..., Any]:
    """A function that imports the one called ``name`` when it is called, and calls it."""

    def call(*values: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*values, **options)

    return call


def no_options() -> dict[str, str]:
    """No parameters but the common ones."""
    return {}


@dataclass(frozen=True)
class Row:
    """One fine-tuning method.

    Attributes:
        name: what ``--method`` calls it.
        config: makes the adapter's configuration; None where all weights are trained.
        takes: the parameters of ``config`` beside rank, alpha, dropout and modules, each with the
            option that gives it (``num_steps``: the updates of the run).
        bi_level: whether it has an upper level.
        second_level: what ``--two_levels`` adds to the parameters of ``config``; None where there
            is one level, or always two.
        note: what ``--help`` says of it in brackets.
        mask_rate: of LoRA Dropout where ``--mask_rate`` gives none, 0 for no masks; None where the
            factors cannot be masked.
        orthogonality: the penalty of ``--orthogonality``, from its weight and whether norms are
            squared.
        binarisation: the upper level's penalty of ``--binarisation``, from its weight.
        penalty: what the lower loss always has beside it.
        retraining: what follows the search where nothing is asked for.
        selects_ranks: whether a retraining can take over the ranks of the search.
        response_alone: why the upper level moves through the lower one's response alone, where it
            does: controls without a response are refused with these words.
        export: writes the adapter as a plain LoRA.
        hook: makes what acts after each step of the optimizer, from it, the model, the number of
            its steps, and the optimizer of the upper level where there is one.
        finishing: the same for a training that follows the one with the hook.
        learning_rate: where no flag gives one; docs/defaults.md says how it was chosen.
        shrunk_learning_rate: likewise, where its update starts at 1 / r of LoRA's scale, because
            softmax values sum to one; None where there are none.
        upper_learning_rate: likewise, of the upper level; None for the lower one's.
        unpublished: why ``--preset paper`` has nothing for it, where a paper has something.
    """

    name: str
    config: Callable[..., PeftConfig] | None
    takes: Mapping[str, str] = field(default_factory=no_options)
    bi_level: bool = False
    second_level: Mapping[str, Any] | None = None
    note: str = ""
    mask_rate: float | None = None
    orthogonality: Callable[[float, bool], Penalty] | None = None
    binarisation: Callable[[float], Penalty] | None = None
    penalty: Callable[[], Penalty] | None = None
    retraining: Retraining = "none"
    selects_ranks: bool = False
    response_alone: str | None = None
    export: Callable[..., object] | None = None
    hook: Hook | None = None
    finishing: Hook | None = None
    learning_rate: float = 2e-3
    shrunk_learning_rate: float | None = None
    upper_learning_rate: float | None = None
    unpublished: str | None = None


def bilora_config(**settings: Any) -> BiLoraConfig:
    """The configuration of BiLoRA.

    Raises:
        UsageError: a single softmax value, which is a constant.
    """
    if settings["r"] == 1 and settings["values"] == "softmax":
        raise UsageError(
            "argument --lora_r: one softmax value is always 1, got 1; use a rank of at least 2, "
            "or --singular_values real"
        )
    from adapters import BiLoraConfig

    return BiLoraConfig(**settings)


def dora_config(**settings: Any) -> LoraConfig:
    """PEFT's DoRA."""
    from peft import LoraConfig

    return LoraConfig(use_dora=True, **settings)


def adalora_config(*, num_steps: int, r: int, lora_alpha: float, **settings: Any) -> AdaLoraConfig:
    """AdaLoRA that starts at one and a half times the rank and prunes to the rank on average.

    1.5, and an orthogonality penalty of 0.1, are the choices of the paper and its code; so that the
    scale stays what ``lora_alpha`` / ``lora_r`` says, alpha is multiplied by the same factor. The
    budget falls between 10 % and 70 % of the updates.

    Reference: Zhang et al. (2023), arXiv:2303.10512.
    """
    from peft import AdaLoraConfig

    final = num_steps - round(0.7 * num_steps)
    if num_steps - final < 2:
        raise ValueError(f"needs 3 updates at least to find ranks by, got {num_steps}")
    initial = math.ceil(1.5 * r)
    return AdaLoraConfig(
        init_r=initial,
        target_r=r,
        lora_alpha=lora_alpha * initial / r,  # type: ignore[arg-type]
        tinit=num_steps // 10,
        tfinal=final,
        deltaT=max(1, num_steps // 100),
        total_step=num_steps,
        orth_reg_weight=0.1,
        **settings,
    )


def mole_config(
    *,
    experts: list[str] | None,
    num_experts: int,
    train_experts: bool = False,
    r: int,
    lora_alpha: float,
    **settings: Any,
) -> MoleConfig:
    """MoLE of folders of plain LoRA, or of new experts, each with the rank and the scale of LoRA.

    Raises:
        UsageError: new experts without a second level, which would never be trained.
    """
    from adapters import MoleConfig

    if experts:
        return MoleConfig(experts=experts, train_experts=train_experts, **settings)
    if not train_experts:
        raise UsageError(
            "argument --experts: method mole weighs adapters that exist, got none; give their "
            "folders, or --two_levels to train new ones through the gate"
        )
    return MoleConfig(
        ranks=[r] * num_experts,
        lora_alpha=lora_alpha * num_experts,  # type: ignore[arg-type]
        train_experts=True,
        **settings,
    )


def allocation(
    optimizer: Optimizer, model: Any, num_steps: int, upper: Optimizer | None
) -> Allocation:
    """AdaLoRA's allocator, which has a schedule of its own."""
    from adapters import Allocation

    del num_steps, upper
    return Allocation(optimizer, model)


def kept_ranks(
    optimizer: Optimizer, model: Any, num_steps: int, upper: Optimizer | None
) -> Allocation:
    """AdaLoRA's allocator behind its schedule: what it has pruned stays zero."""
    made = allocation(optimizer, model, num_steps, upper)
    made.num_steps = model.peft_config[model.active_adapter].total_step
    return made


def beam_search(
    optimizer: Optimizer, model: Any, num_steps: int, upper: Optimizer | None
) -> BeamSearch:
    """Twelve moves a run, as in the authors' script (every 3,000 of 37,000 steps), at most.

    The first half of the period leads to a snapshot; nothing is moved in the last period.
    """
    from adapters import BeamSearch

    every = max(4, 2 * (num_steps // 24))
    return BeamSearch(optimizer, model, every=every, num_steps=num_steps, score_optimizer=upper)


NEVER_RELEASED = "could not be read and its code was never released"
ROWS = (
    Row("full", None, note="all weights", learning_rate=5e-5),
    Row("lora", later("peft", "LoraConfig"), note="PEFT's own"),
    Row("dora", dora_config, note="PEFT's own"),
    Row(
        "adalora",
        adalora_config,
        {"num_steps": "num_steps"},
        note="PEFT's own",
        hook=allocation,
        finishing=kept_ranks,
        learning_rate=5e-3,
    ),
    Row(
        "lora_dropout",
        later("adapters", "LoraDropoutConfig"),
        mask_rate=0.5,
        learning_rate=5e-3,
        upper_learning_rate=1e-2,
        unpublished=f"the tables of LoRA Dropout's paper {NEVER_RELEASED}",
    ),
    Row(
        "bilora",
        bilora_config,
        {"values": "singular_values", "scale_by_rank": "scale_by_rank", "tied": "tied_values"},
        bi_level=True,
        shrunk_learning_rate=5e-3,
        upper_learning_rate=1e-2,
        mask_rate=0.0,
        orthogonality=later("adapters", "Orthogonality"),
        binarisation=later("adapters", "Binarisation"),
        export=later("adapters", "export_lora"),
        unpublished=f"the tables of BiLoRA's paper {NEVER_RELEASED}",
    ),
    Row(
        "bidora",
        later("adapters", "BiDoraConfig"),
        {"norm_axis": "norm_axis"},
        bi_level=True,
        mask_rate=0.0,
        orthogonality=later("adapters", "DirectionOrthogonality"),
        retraining="values",
    ),
    Row(
        "autolora",
        later("adapters", "AutoLoraConfig"),
        bi_level=True,
        learning_rate=5e-3,
        upper_learning_rate=1e-2,
        retraining="ranks",
        selects_ranks=True,
    ),
    Row(
        "lora_weight_decay",
        later("adapters", "LoraWeightDecayConfig"),
        {"initial_weight_decay": "initial_weight_decay"},
        bi_level=True,
        note="a weight decay for each layer above",
        learning_rate=5e-3,
        upper_learning_rate=1e-2,
        penalty=later("adapters", "WeightDecay"),
        response_alone="its decays act on held-out data through the lower level's response alone",
        export=later("adapters", "export_lora"),
    ),
    Row(
        "beam_lora",
        later("adapters", "BeamLoraConfig"),
        second_level={"score_level": "upper"},
        export=later("adapters", "export_lora"),
        hook=beam_search,
    ),
    Row(
        "mole",
        mole_config,
        {"experts": "experts", "num_experts": "num_experts"},
        second_level={"train_experts": True},
        upper_learning_rate=1e-2,
        note="of the adapters that --experts names",
        export=later("adapters", "export_lora"),
    ),
    Row(
        "sd_lora",
        later("adapters", "SdLoraConfig"),
        second_level={"magnitude_level": "upper"},
        note="one task; applications.continual trains several",
        export=later("adapters", "export_lora"),
    ),
    Row(
        "rep_lora",
        later("adapters", "RepLoraConfig"),
        {"generator": "generator", "width": "generator_width"},
        second_level={"generator_level": "upper"},
        learning_rate=3e-3,
        export=later("adapters", "export_lora"),
        unpublished="the sizes of RepLoRA's network were never published",
    ),
)
METHODS: dict[str, Row] = {row.name: row for row in ROWS}
DEFAULT_METHOD = "bilora"
USUAL = (None, 0.0, "none")


def named(rows: Mapping[str, Row], *, bi_level: bool) -> str:
    """The methods of one or of two levels in words, with what is to be said of them."""
    chosen = [row for row in rows.values() if row.bi_level is bi_level]
    return ", ".join(f"{row.name} ({row.note})" if row.note else row.name for row in chosen)


def defaults(attribute: str) -> str:
    """What the methods have as a default that not all have, in words: ``values for bidora``."""
    found = {row.name: getattr(row, attribute) for row in METHODS.values()}
    return ", ".join(f"{value} for {name}" for name, value in found.items() if value not in USUAL)


def by_method(attribute: str) -> str:
    """The methods' values of a number in words, the usual one first: ``0.002; 0.0002 for full``.

    The usual one is said without names where every method has a value.
    """
    given = {row.name: getattr(row, attribute) for row in METHODS.values()}
    names: dict[float, list[str]] = {}
    for name, value in given.items():
        if value is not None:
            names.setdefault(value, []).append(name)
    usual = max(names, key=lambda value: len(names[value]))
    bare = None not in given.values()
    words = [f"{value:g} for {', '.join(names[value])}" for value in names]
    if bare:
        others = [word for value, word in zip(names, words, strict=True) if value != usual]
        return "; ".join([f"{usual:g}", *others])
    return "; ".join(words)


def those_with(attribute: str) -> list[str]:
    """The names of the methods that have something."""
    return [row.name for row in METHODS.values() if getattr(row, attribute) is not None]


@dataclass(frozen=True)
class Price:
    """What one response costs at most.

    Attributes:
        gradients: forward and backward passes of the lower loss.
        products: Hessian and mixed products on graphs that are kept; with none of them, first
            derivatives are all that is taken.
        vectors: tensors of the lower level's size that are held at once.
        graphs: of gradients that are held at once, where there are products.
    """

    gradients: int
    products: int
    vectors: int
    graphs: int = 1


@dataclass(frozen=True)
class Hypergradient:
    """One way to compute the lower level's response.

    Attributes:
        make: makes the method of `blo`.
        price: of a response, from ``--hypergradient_products`` and ``--lower_steps``.
        takes: its parameters, each with what gives it: ``scale``, ``products`` or ``damping``, the
            ends of the names of the options.
        responds: whether there is a response at all.
    """

    make: Callable[..., Method]
    price: Callable[[int, int], Price]
    takes: Mapping[str, str] = field(default_factory=no_options)
    responds: bool = True


def difference(products: int, steps: int) -> Price:
    """Two gradients beside the point, and nothing of second order."""
    del products, steps
    return Price(2, 0, 2)


SCALE = {"scale": "scale"}
DAMPED = {"max_products": "products", "damping": "damping"}
HYPERGRADIENTS: Mapping[str, Hypergradient] = {
    "darts": Hypergradient(later("blo", "darts"), difference, SCALE),
    "t1t2": Hypergradient(later("blo", "t1t2"), lambda products, steps: Price(0, 1, 1), SCALE),
    "neumann": Hypergradient(
        later("blo", "neumann"), lambda products, steps: Price(1, products + 1, 3), SCALE | DAMPED
    ),
    "cg": Hypergradient(
        later("blo", "cg"), lambda products, steps: Price(1, products + 1, 4), DAMPED
    ),
    "minres": Hypergradient(
        later("blo", "minres"), lambda products, steps: Price(1, products + 1, 7), DAMPED
    ),
    "nystrom": Hypergradient(
        later("blo", "nystrom"),
        lambda products, steps: Price(1, products + 2, products + 2),
        {"rank": "products"},
    ),
    "sama": Hypergradient(later("blo", "sama"), difference),
    "unrolled": Hypergradient(
        later("blo", "unrolled"), lambda products, steps: Price(0, steps, 3, steps)
    ),
    "alternating": Hypergradient(
        later("blo", "alternating"), lambda products, steps: Price(0, 0, 0), responds=False
    ),
}


def taking(option: str) -> str:
    """The hypergradient methods that have an option, in words: ``darts, t1t2 or neumann``."""
    *most, last = [
        name for name, method in HYPERGRADIENTS.items() if option in method.takes.values()
    ]
    return f"{', '.join(most)} or {last}"
