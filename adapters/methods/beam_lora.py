"""BeamLoRA: a gate on every rank, and weak ranks that become copies of strong ones.

``W = W0 + s B diag(w) A``, ``w = r softmax(g / tau)``. Every T steps the ranks of all modules are
sorted by w; what lies beyond a share p of the sum is overwritten by what the strongest ranks of its
module were T/2 steps ago. p grows to 1, so that moves become rare.

A move changes what the model computes, and is surgery on the lower variables: what a method keeps
in their shape has to start anew.

Reference: Gu et al. (2025), arXiv:2502.13604.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.checks import check_positive, check_whole
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.factors import factors
from adapters.glue.registry import register
from adapters.methods.diagonal import DiagonalVariant
from adapters.methods.hooks import StepHook

__all__ = ["BeamLoraConfig", "BeamSearch"]

LEVELS = ("lower", "upper")


class BeamLoraVariant(DiagonalVariant):
    """One adapter of one layer, ``dW = s B diag(r softmax(g / tau)) A``, g at zero first."""

    two_levels = "BeamLoraConfig(score_level='upper')"


@dataclass
class BeamLoraConfig(BiLevelConfig):
    """Configuration of BeamLoRA, for ``peft.get_peft_model``; every option of ``LoraConfig`` and
    two.

    Starts as plain LoRA, all values at 1. `BeamSearch` on the optimizer does the rest.

    Args:
        temperature: tau, above 0: 0.05 in the authors' code, 0.03 below a learning rate of 1e-4.
            Every gradient of the scores is multiplied by 1/tau, which Adam hides and SGD does not.
        score_level: the level of the scores g. ``"lower"``, the paper's: one level, trained with A
            and B on the same data; ``"upper"``: held-out data fit them (``Differs from the
            paper``).

    Example:
        >>> from adapters import BeamLoraConfig, singular_values
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BeamLoraConfig(r=2, target_modules=["0"]))
        >>> {name: values.tolist() for name, values in singular_values(model).items()}
        {'base_model.model.0': [1.0, 1.0]}

    Reference: Gu et al. (2025), arXiv:2502.13604.
    """

    temperature: float = field(default=0.05, metadata={"help": "Temperature of the softmax."})
    score_level: Literal["lower", "upper"] = field(
        default="lower",
        metadata={"help": "The level of the scores: 'lower' or 'upper'.", "is_lora_variant": True},
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"score_level"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BEAM_LORA
        check_positive("temperature", self.temperature)
        if self.score_level not in LEVELS:
            raise ValueError(f"score_level must be one of {LEVELS}, got {self.score_level!r}")
        if 1 in {self.r, *(self.rank_pattern or {}).values()}:
            raise ValueError(
                "r and rank_pattern must be at least 2 for BeamLoraConfig, got 1: a single rank "
                "has nothing to be ranked with"
            )

    def variant(self) -> BeamLoraVariant:
        """Return what the method adds to a layer."""
        values = partial(_values, temperature=self.temperature)
        return BeamLoraVariant(values, start=0.0, level=self.score_level)


BEAM_LORA = register("BEAM_LORA", BeamLoraConfig)


class _Ranks(NamedTuple):
    """The ranks of one module."""

    name: str
    A: Tensor
    B: Tensor
    scores: Tensor
    values: Callable[[Tensor], Tensor]


class BeamSearch(StepHook):
    """Overwrites weak ranks by copies of strong ones, every `every` steps of an optimizer.

    After step k, a multiple of T = `every` with at least T steps left, the values ``w = r softmax(g
    / tau)`` of all modules are sorted together; the first rank at which their running sum exceeds
    ``p_k sum(w)`` and all after it are pruned,

        p_k = 1 - (1 - p_0) (1 + cos(pi k / E)) / 2 up to step E, 1 later.

    In each module the pruned ranks are paired at random with as many of its strongest. Row of A and
    column of B become those of the partner in the snapshot, taken T/2 steps earlier; the partner's
    own stay; both scores become their mean. What the optimizer keeps for the row and the column
    (Adam's moments) becomes what it kept for the partner's, and what it keeps for all scores zero.

    Args:
        optimizer: holds A and B of all adapted modules; with one level the scores too.
        model: a model with an active BeamLoRA adapter.
        every: T, even, at least 4.
        num_steps: the steps of the whole run.
        top_p: p_0, in (0, 1]; 0.95 in the authors' scripts.
        end: E, the step from which nothing is pruned; None for two thirds of the run, as there.
        seed: of the pairing, whose generator is the hook's own.
        score_optimizer: the optimizer of the scores where it is another, the upper one.
        on_move: called after every move with the number of pruned ranks. With a method that keeps
            something in the shape of the lower variables across rounds (`blo.soba`, a warm start),
            forget it here.

    Raises:
        ValueError: if the model has no active BeamLoRA adapter, `optimizer` lacks a factor,
            `score_optimizer` has no scores, or a number is out of its range.

    Example:
        >>> from adapters import BeamLoraConfig, BeamSearch
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BeamLoraConfig(r=2, target_modules=["0"]))
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
        >>> search = BeamSearch(optimizer, model, every=4, num_steps=8, top_p=0.5, on_move=print)
        >>> for _ in range(8):
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        1

    Reference: Gu et al. (2025), arXiv:2502.13604.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        every: int,
        num_steps: int,
        top_p: float = 0.95,
        end: int | None = None,
        seed: int = 0,
        score_optimizer: torch.optim.Optimizer | None = None,
        on_move: Callable[[int], None] | None = None,
    ) -> None:
        check_whole("num_steps", num_steps)
        check_whole("every", every, least=4)
        if every % 2:
            raise ValueError(f"every must be even, got {every}: the snapshot is taken half way")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p!r}")
        if num_steps < 2 * every:
            warnings.warn(
                f"num_steps={num_steps} is less than 2 * every={2 * every}: nothing is ever moved",
                UserWarning,
                stacklevel=2,
            )
        self.every = every
        self.length = num_steps
        self.top_p = top_p
        self.end = 2 * num_steps // 3 if end is None else end
        check_whole("end", self.end)
        if on_move is not None and not callable(on_move):
            raise ValueError(f"on_move must be a function of a number, got {on_move!r}")
        self.on_move = on_move
        self._ranks = _all_ranks(model)
        self._optimizers = (optimizer, *([] if score_optimizer is None else [score_optimizer]))
        for side, holders in (("AB", self._optimizers[:1]), (("scores",), self._optimizers)):
            held = {id(p) for o in holders for group in o.param_groups for p in group["params"]}
            for ranks in self._ranks:
                for part in side:
                    if id(getattr(ranks, part)) not in held:
                        raise ValueError(
                            f"optimizer must hold {part} of {ranks.name!r}; build it from the "
                            "trainable parameters of the model, and give that of scores on an "
                            "upper level as score_optimizer"
                        )
        if score_optimizer is not None:
            given = {id(p) for group in score_optimizer.param_groups for p in group["params"]}
            if not any(id(ranks.scores) in given for ranks in self._ranks):
                raise ValueError(
                    "score_optimizer must hold the scores, got an optimizer of other parameters; "
                    "leave it out where one optimizer has everything"
                )
        self._generator = torch.Generator().manual_seed(seed)
        self._snapshot: list[dict[str, Tensor]] = []
        super().__init__(optimizer, after=self._follow)

    def share(self, step: int) -> float:
        """Return p_k, the share of the values' sum that is kept at a step."""
        if step > self.end:
            return 1.0
        return 1 - (1 - self.top_p) * (1 + math.cos(math.pi * step / self.end)) / 2

    @torch.no_grad()
    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        # The authors' code takes the snapshot before it counts the step.
        if self.num_steps > 0 and self.num_steps % self.every == self.every // 2:
            self._snapshot = [self._taken(ranks) for ranks in self._ranks]
        step = self.num_steps + 1
        if step % self.every == 0 and self.length - step >= self.every:
            self._move(self.share(step))

    def _move(self, share: float) -> None:
        pruned = pruned_ranks([ranks.values(ranks.scores) for ranks in self._ranks], share)
        for ranks, snapshot, weak in zip(self._ranks, self._snapshot, pruned, strict=True):
            order = ranks.values(ranks.scores).argsort(descending=True, stable=True).tolist()
            shuffled = torch.randperm(len(weak), generator=self._generator).tolist()
            for to, place in zip(weak, shuffled, strict=True):
                self._copy(ranks, snapshot, to, order[place])
        for ranks in self._ranks:
            for moment in self._kept(ranks.scores).values():
                moment.zero_()
        if self.on_move is not None:
            self.on_move(sum(len(weak) for weak in pruned))

    def _copy(self, ranks: _Ranks, snapshot: dict[str, Tensor], to: int, partner: int) -> None:
        for side, parameter, rows in (("A", ranks.A, ranks.A), ("B", ranks.B, ranks.B.T)):
            kept = {f"{side}.{name}": value for name, value in self._kept(parameter).items()}
            places = {side: rows} | {
                key: value if side == "A" else value.T for key, value in kept.items()
            }
            for key, place in places.items():
                taken = snapshot[key]
                place[to] = (taken if side == "A" else taken.T)[partner]
        mean = (ranks.scores[to] + ranks.scores[partner]) / 2
        ranks.scores[to] = mean
        ranks.scores[partner] = mean

    def _taken(self, ranks: _Ranks) -> dict[str, Tensor]:
        """Return copies of A and B of one module, and of what the optimizer keeps for them."""
        found = {"A": ranks.A.clone(), "B": ranks.B.clone()}
        for side, parameter in (("A", ranks.A), ("B", ranks.B)):
            for name, value in self._kept(parameter).items():
                found[f"{side}.{name}"] = value.clone()
        return found

    def _kept(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return what the optimizers keep in the shape of a parameter, by name."""
        return {
            name: value
            for optimizer in self._optimizers
            for name, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the steps taken, the snapshot and the state of the generator."""
        snapshot = [{name: value.clone() for name, value in one.items()} for one in self._snapshot]
        return {
            **super().state_dict(),
            "snapshot": snapshot,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            KeyError: if the state is not of this class.
        """
        super().load_state_dict(state)
        self._generator.set_state(state["generator"].cpu())
        self._snapshot = [
            {name: value.to(ranks.A.device) for name, value in one.items()}
            for one, ranks in zip(
                state["snapshot"], self._ranks if state["snapshot"] else [], strict=True
            )
        ]


def pruned_ranks(values: list[Tensor], share: float) -> list[list[int]]:
    """Return the pruned ranks of every module, ascending.

    All values are sorted together, from the largest; the first at which the running sum exceeds
    ``share * sum of the ranks`` and all after it are pruned; nothing at a share of 1.

    Args:
        values: w of every module, each with the sum of its rank.
        share: p, in (0, 1].
    """
    found: list[list[int]] = [[] for _ in values]
    if share >= 1:
        return found
    places = [(module, rank) for module, w in enumerate(values) for rank in range(len(w))]
    ordered, order = torch.cat([w.float() for w in values]).sort(descending=True, stable=True)
    beyond = ordered.cumsum(0) > share * len(places)
    for place in order[beyond].tolist():
        module, rank = places[place]
        found[module].append(rank)
    return [sorted(ranks) for ranks in found]


def _values(g: Tensor, *, temperature: float) -> Tensor:
    return g.numel() * torch.softmax(g / temperature, 0)


def _all_ranks(model: nn.Module) -> list[_Ranks]:
    found = at_least_one(
        adapted_layers(model, BeamLoraVariant),
        model,
        what="active BeamLoRA adapter for BeamSearch",
        config="BeamLoraConfig",
    )
    return [
        _Ranks(
            name, *factors(layer, adapter)[2:4], variant.parameters(layer, adapter), variant.values
        )
        for name, adapter, layer, variant in found
    ]
