"""What is tried: methods, learning rates, data sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from applications.options.command_line import parse_options

STEPS, TRAIN_SIZE, HELD_OUT, PACE = 150, 300, 800, 5
BESIDE = (0.4, 2.5)
TUNED_ON = ("sst2", "trec", "cr")
CHECKED_ON = ("mpqa", "bbc_headlines")
USUAL, FAST = (1e-3, 2e-3, 5e-3), (2e-3, 5e-3, 1e-2)


@dataclass(frozen=True)
class Variant:
    """A method with what is not a rate, and the rates it is tried at.

    Attributes:
        flags: of the command, beside the rates.
        rates: learning rates.
        upper_rates: of the upper level; None stands for the learning rate.
    """

    flags: Sequence[str]
    rates: Sequence[float] = USUAL
    upper_rates: Sequence[float | None] = (None,)

    @property
    def default(self) -> float:
        """The learning rate that it has with no flag for it."""
        return parse_options(self.flags).learning_rate


def of(method: str, *flags: str) -> tuple[str, ...]:
    """The flags of a method."""
    return ("--method", method, *flags)


VARIANTS: Mapping[str, Variant] = {
    "full": Variant(of("full"), (2e-5, 5e-5, 1e-4, 2e-4, 5e-4)),
    "lora": Variant(of("lora")),
    "dora": Variant(of("dora")),
    "adalora": Variant(of("adalora"), (5e-3, 1e-2)),
    "lora_dropout": Variant(of("lora_dropout"), (2e-3, 5e-3)),
    "bilora": Variant(of("bilora"), FAST, (1e-2,)),
    "bilora_scaled": Variant(of("bilora", "--scale_by_rank"), (2e-3,), (1e-2,)),
    "bilora_real": Variant(of("bilora", "--singular_values", "real"), USUAL, (1e-2,)),
    "bidora": Variant(of("bidora"), USUAL, (None,)),
    "autolora": Variant(of("autolora"), USUAL, (1e-2,)),
    "lora_weight_decay": Variant(of("lora_weight_decay"), USUAL, (1e-2,)),
    "beam_lora": Variant(of("beam_lora"), USUAL),
    "mole": Variant(of("mole", "--two_levels"), USUAL, (1e-2,)),
    "sd_lora": Variant(of("sd_lora"), USUAL),
    "rep_lora": Variant(of("rep_lora"), (2e-3, 3e-3, 5e-3, 2e-2)),
}


@dataclass(frozen=True)
class Cell:
    """One training."""

    model: str
    task: str
    variant: str
    learning_rate: float | None
    upper_learning_rate: float | None
    seed: int
    split: str

    def flags(self) -> list[str]:
        """The flags of the method and its rates; None leaves a rate to its default."""
        words = [*VARIANTS[self.variant].flags]
        for name in ("learning_rate", "upper_learning_rate"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}={value}"]
        return words


def tuning(
    model: str, tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int]
) -> Iterator[Cell]:
    """Every rate of every variant on validation splits, seed by seed, variant by variant."""
    for seed, name, task in product(seeds, variants, tasks):
        variant = VARIANTS[name]
        for rate, upper in product(variant.rates, variant.upper_rates):
            yield Cell(model, task, name, rate, upper, seed, "validation")


def checking(
    model: str, tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int]
) -> Iterator[Cell]:
    """The defaults on test splits, and beside them 0.4 and 2.5 times the default learning rate."""
    for factor, seed, name, task in product((1, *BESIDE), seeds, variants, tasks):
        rate = VARIANTS[name].default
        tried = None if factor == 1 else float(f"{factor * rate:.3g}")
        yield Cell(model, task, name, tried, None, seed, "test")
