"""MoLE: trained LoRAs side by side, weighted by a gate.

``W = W0 + sum_i G_i s_i B_i A_i``, ``G = softmax(v / tau)``: the experts ``B_i A_i`` are adapters
that exist, the gate is what is trained. Static gates are parameters, one vector for a module or a
block of the transformer, and fold into plain LoRA; input-dependent ones are computed from what the
experts make of the input, one for a module and a sequence, and fold into nothing.

With frozen experts nothing responds to the gate: one level. Experts that are trained through the
gate do: ``train_experts=True``.

Reference: Wu, Huang and Wei (2024), arXiv:2404.13628.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.checkpoints import LoraFolder
from adapters.glue.checks import check_positive, check_whole
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.factors import LoraLayer, factors
from adapters.glue.layers import BiLevelLinear
from adapters.glue.norms import widen
from adapters.glue.penalties import check_weight
from adapters.glue.registry import WRAPPER, register
from adapters.glue.sharing import SharingModel, freeze, layer_of
from adapters.glue.variants import add_parameter
from adapters.methods.grouped import GroupedVariant, spread

__all__ = ["Balance", "MoleConfig", "keep_experts"]

GATES = ("static", "input")
GRANULARITIES = ("module", "layer")
TEMPERATURE = "lora_gate_temperature"


class MoleVariant(GroupedVariant):
    """One adapter of one layer, ``dW = s sum_i softmax(v / tau)_i B_i A_i``, v at zero first."""

    container = "lora_gate"

    def __init__(self, config: "MoleConfig") -> None:
        assert config.ranks is not None
        super().__init__(_unchanged, sizes=config.ranks, start=0.0)
        self.by_layer = config.granularity == "layer"
        self.temperature = config.temperature
        self.frozen = not config.train_experts
        self.kept_experts = config.kept_experts
        self.shared = (self.container, *((TEMPERATURE,) if config.learn_temperature else ()))

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Add the gate to the layer, next to the experts' A and B."""
        GroupedVariant.init(module, adapter_name, **kwargs)
        _prepare(module, adapter_name)

    @property
    def containers(self) -> tuple[str, ...]:
        """The gate, and its temperature where that is learned."""
        return self.shared

    @property
    def upper_containers(self) -> tuple[str, ...]:
        """The gate, and its temperature where that is learned."""
        return self.shared

    def group(self, name: str, layer: LoraLayer, adapter: str) -> str:
        """Return the module, or the block of the transformer it is in."""
        return layer_of(name) if self.by_layer else name

    def gate(self, layer: LoraLayer, adapter: str, logits: Tensor) -> Tensor:
        """Return ``softmax(logits / tau)`` over the experts that are kept, 0 for the others."""
        temperature: float | Tensor = self.temperature
        if TEMPERATURE in self.shared:
            temperature = getattr(self.keeper(layer), TEMPERATURE)[adapter].exp().to(logits.device)
        logits = logits / temperature
        if self.kept_experts is not None:
            indices = torch.arange(len(self.sizes), device=logits.device)
            kept = torch.tensor(self.kept_experts, device=logits.device)
            logits = logits.masked_fill(~torch.isin(indices, kept), -torch.inf)
        return torch.softmax(logits, -1)

    def block_values(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return the gate, shape ``(experts,)``."""
        return self.gate(layer, adapter, self.parameters(layer, adapter))


class InputGateVariant(MoleVariant):
    """One adapter of one layer whose gate depends on the input.

    ``v = z e`` with z the experts' contributions ``s B_i A_i x``, their mean over the tokens, laid
    end to end and normalised, and e of shape ``(experts * out, experts)``, zero at first.
    """

    unexportable = (
        "has gates that depend on the input, which no fixed B A computes; "
        "model.save_pretrained(path) saves it, and MoleConfig(gate='static') folds"
    )

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Add e to the layer, next to the experts' A and B."""
        variant = _variant(module, adapter_name)
        pair, experts = factors(module, adapter_name), len(variant.sizes)
        start = pair.B.new_zeros(experts * pair.B.shape[0], experts)
        add_parameter(module, variant.container, adapter_name, start)
        _prepare(module, adapter_name)

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return ``result + s sum_i G_i(x) B_i A_i x``, a G for every entry of the batch."""
        variant = _variant(module, active_adapter)
        pair = factors(module, active_adapter)
        hidden = F.linear(module.lora_dropout[active_adapter](x), pair.A) * pair.scale
        mean = hidden.flatten(1, -2).mean(1) if hidden.dim() > 2 else hidden
        blocks = zip(mean.split(variant.sizes, -1), pair.B.split(variant.sizes, 1), strict=True)
        z = torch.cat([F.linear(h, B) for h, B in blocks], -1)
        logits = F.layer_norm(z, z.shape[-1:]) @ variant.parameters(module, active_adapter)
        values = spread(variant.gate(module, active_adapter, logits), variant.sizes)
        values = values.view(len(values), *(1,) * (hidden.dim() - 2), -1)
        return result + F.linear(hidden * values, pair.B)

    def block_values(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Refuse: there is no gate without an input."""
        raise ValueError(f"adapter {adapter!r} {self.unexportable}; nor can it be merged")


@dataclass
class MoleConfig(BiLevelConfig):
    """Configuration of MoLE, for ``peft.get_peft_model``; every option of ``LoraConfig`` that fits,
    and more.

    The model starts as the uniform mixture of its experts. `Balance` keeps the gates from choosing
    one expert everywhere, `keep_experts` leaves some out.

    Args:
        experts: folders of plain LoRA, of the same base model; read when the model is adapted, and
            not when a saved MoLE is loaded, which holds them. ``r``, ``lora_alpha`` and, where it
            is not given, ``target_modules`` follow from them. A module that an expert does not
            adapt counts as zero; heads in ``modules_to_save`` are not read.
        ranks: the ranks of the experts, without folders: new ones, trained through the gate. A
            saved MoLE has both.
        gate: ``"static"`` or ``"input"``.
        granularity: of static gates: one for a ``"module"``, or one for a ``"layer"``, the block of
            the transformer, whose modules share it.
        temperature: tau, above 0.
        learn_temperature: learn its logarithm, with the gate.
        train_experts: train the experts too, at the lower level. ``Differs from the paper``, whose
            experts are frozen.
        kept_experts: the numbers of the experts in use, from 0; all if None.

    Example:
        >>> from adapters import MoleConfig, singular_values
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> config = MoleConfig(ranks=[1, 1], train_experts=True, target_modules=["0"])
        >>> model = get_peft_model(net, config)
        >>> {name: gate.tolist() for name, gate in singular_values(model).items()}
        {'base_model.model.0': [0.5, 0.5]}

    Reference: Wu, Huang and Wei (2024), arXiv:2404.13628.
    """

    experts: list[str] = field(
        default_factory=list, metadata={"help": "Folders of plain LoRA adapters."}
    )
    ranks: list[int] | None = field(
        default=None, metadata={"help": "The ranks of the experts.", "is_lora_variant": True}
    )
    gate: Literal["static", "input"] = field(
        default="static", metadata={"help": "The gate: 'static' or 'input'."}
    )
    granularity: Literal["module", "layer"] = field(
        default="module", metadata={"help": "One static gate a 'module' or a 'layer'."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the gate."})
    learn_temperature: bool = field(default=False, metadata={"help": "Learn the temperature."})
    train_experts: bool = field(
        default=False, metadata={"help": "Train the experts too, at the lower level."}
    )
    kept_experts: list[int] | None = field(
        default=None, metadata={"help": "The numbers of the experts in use; all if None."}
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"ranks"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MOLE
        for option, known in (("gate", GATES), ("granularity", GRANULARITIES)):
            if getattr(self, option) not in known:
                raise ValueError(f"{option} must be one of {known}, got {getattr(self, option)!r}")
        check_positive("temperature", self.temperature)
        if self.rank_pattern:
            raise ValueError(
                f"rank_pattern cannot be combined with MoleConfig, got {self.rank_pattern!r}: the "
                "ranks are those of the experts"
            )
        if not self.experts and not (self.ranks and self.train_experts):
            raise ValueError(
                "experts must name at least one folder, got none; for new experts give ranks and "
                "train_experts=True"
            )
        if self.gate == "input" and self.granularity == "layer":
            raise ValueError(
                "granularity='layer' needs gate='static': the gate of an input is computed by the "
                "module that has it"
            )
        if self.gate == "input" and self.task_type == "CAUSAL_LM":
            raise ValueError(
                "gate='input' cannot be combined with task_type='CAUSAL_LM': one gate for a whole "
                "sequence would see the tokens that are to be predicted; use gate='static'"
            )
        if self.ranks is not None:
            if not isinstance(self.ranks, list | tuple) or not self.ranks:
                raise ValueError(f"ranks must be a list of integers, got {self.ranks!r}")
            for number, rank in enumerate(self.ranks):
                check_whole(f"ranks[{number}]", rank)
            self.r = sum(self.ranks)
            _check_kept(self.kept_experts, len(self.ranks))

    def variant(self) -> MoleVariant:
        """Return what the method adds to a layer."""
        return MoleVariant(self) if self.gate == "static" else InputGateVariant(self)


class MoleModel(SharingModel):
    """PEFT's LoRA model, filled with the experts' factors."""

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Adapt the model; read the experts unless a checkpoint brings them."""
        config: Any = self.peft_config[adapter_name]
        folders = []
        if config.ranks is None:
            folders = [LoraFolder(path) for path in config.experts]
            self.peft_config[adapter_name] = _resolved(config, folders)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if folders:
            _fill(model, adapter_name, folders)


MOLE = register("MOLE", MoleConfig, MoleModel)


@dataclass(frozen=True)
class Balance:
    """Penalty that is least when all experts are used alike: MoLE's balance loss.

    weight * ``-sum_i log q_i``, q_i the mean of expert i's static gates over modules (or layers):
    ``N log N`` at its least, at ``q_i = 1/N``. Experts that are not kept do not count.

    Args:
        weight: the factor, at least 0; 0.5 in the paper.

    Example:
        >>> from adapters import Balance, MoleConfig
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> config = MoleConfig(ranks=[1, 1, 1], train_experts=True, target_modules=["0"])
        >>> round(Balance(1.0)(get_peft_model(net, config)).item(), 4)  # 3 log 3
        3.2958

    Reference: Wu, Huang and Wei (2024), arXiv:2404.13628.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of the active adapter, a scalar.

        Raises:
            ValueError: if the model has no active MoLE adapter, or its gates depend on the input.
        """
        gates = {}
        for _, adapter, layer, variant in _mole_layers(model, None):
            gates[id(variant.keeper(layer)), adapter] = variant.block_values(layer, adapter)
        share = torch.stack([gate.to(widen(gate.dtype)) for gate in gates.values()]).mean(0)
        kept = variant.kept_experts
        return -self.weight * (share if kept is None else share[kept]).log().sum()


def keep_experts(
    model: nn.Module, experts: Iterable[int] | None, adapter_name: str | None = None
) -> None:
    """Use these experts only; the weights of the others go to them in proportion.

    No training is needed, and the experts left out are still there. Kept in a checkpoint.

    Args:
        model: a model with a MoLE adapter.
        experts: their numbers, from 0; None for all.
        adapter_name: the adapter; the active ones if None.

    Raises:
        ValueError: if the model has no MoLE adapter or it has no such expert.

    Example:
        >>> from adapters import MoleConfig, keep_experts, singular_values
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> config = MoleConfig(ranks=[1, 1, 1], train_experts=True, target_modules=["0"])
        >>> model = get_peft_model(net, config)
        >>> keep_experts(model, [0, 2])
        >>> {name: gate.tolist() for name, gate in singular_values(model).items()}
        {'base_model.model.0': [0.5, 0.0, 0.5]}

    Reference: Wu, Huang and Wei (2024), arXiv:2404.13628.
    """
    kept = None if experts is None else sorted(set(experts))
    for _, adapter, _, variant in _mole_layers(model, adapter_name):
        _check_kept(kept, len(variant.sizes))
        variant.kept_experts = kept
        config: Any = getattr(model, "peft_config", {}).get(adapter)
        if config is not None:
            config.kept_experts = kept


def _unchanged(v: Tensor) -> Tensor:
    return v


def _variant(module: LoraLayer, adapter: str) -> MoleVariant:
    variant = module.lora_variant[adapter]
    assert isinstance(variant, MoleVariant)
    return variant


def _prepare(module: LoraLayer, adapter: str) -> None:
    variant, B = _variant(module, adapter), factors(module, adapter).B
    if TEMPERATURE in variant.shared:
        start = torch.full((1,), variant.temperature, dtype=B.dtype, device=B.device).log()
        add_parameter(module, TEMPERATURE, adapter, start)
    if variant.frozen:
        freeze(module, adapter, "lora_A", "lora_B")


def _mole_layers(
    model: nn.Module, adapter_name: str | None
) -> list[tuple[str, str, BiLevelLinear, MoleVariant]]:
    return at_least_one(
        adapted_layers(model, MoleVariant, adapter_name),
        model,
        what="active MoLE adapter" if adapter_name is None else f"MoLE adapter {adapter_name!r}",
        config="MoleConfig",
    )


def _check_kept(kept: list[int] | None, num_experts: int) -> None:
    if kept is not None and (not kept or not set(kept) <= set(range(num_experts))):
        raise ValueError(
            f"the experts to keep must be at least one of 0 to {num_experts - 1}, got {kept}"
        )


def _resolved(config: MoleConfig, folders: list[LoraFolder]) -> MoleConfig:
    resolved = copy.deepcopy(config)
    resolved.ranks = [folder.rank for folder in folders]
    resolved.r = resolved.lora_alpha = sum(resolved.ranks)
    resolved.use_rslora, resolved.alpha_pattern = False, {}
    if resolved.target_modules is None:
        resolved.target_modules = sorted({name for folder in folders for name in folder.modules})
    _check_kept(resolved.kept_experts, len(folders))
    return resolved


@torch.no_grad()
def _fill(model: nn.Module, adapter: str, folders: list[LoraFolder]) -> None:
    found = {
        name.removeprefix(WRAPPER): factors(layer, adapter)
        for name, _, layer, _ in adapted_layers(model, MoleVariant, adapter)
    }
    for folder in folders:
        for name in sorted(set(folder.modules) - found.keys()):
            raise ValueError(
                f"target_modules must select all modules of the experts, {folder.path!r} adapts "
                f"{name!r}; leave target_modules at None"
            )
    for name, pair in found.items():
        pair.A.zero_()
        pair.B.zero_()
        start = 0
        for folder in folders:
            if name in folder.modules:
                A, B = folder.factors(name)
                if A.shape[1:] != pair.A.shape[1:] or B.shape[:1] != pair.B.shape[:1]:
                    raise ValueError(
                        f"experts must be of this base model, {folder.path!r} has another size of "
                        f"{name!r}"
                    )
                pair.A[start : start + len(A)] = A.to(pair.A)
                pair.B[:, start : start + len(A)] = B.to(pair.B)
            start += folder.rank
