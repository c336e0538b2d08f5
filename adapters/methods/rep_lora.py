"""RepLoRA: the factors are what a small network makes of others, and are kept in the end.

``W = W0 + s B A`` with ``A = g_A(.)``, ``B = g_B(.)``. Query and value of a layer share the network
up to its last layer, which each has its own. After training the network is evaluated once: what is
left is plain LoRA.

The paper publishes neither code nor the sizes of the network: those here, and where it starts, are
ours.

Reference: Truong et al. (2025), arXiv:2502.03044.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.glue.checks import check_whole
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.factors import Factors, LoraLayer, factors
from adapters.glue.norms import widen
from adapters.glue.registry import register
from adapters.glue.sharing import SharedVariant, SharingModel, parent_of
from adapters.glue.variants import AdditiveVariant, add_parameter

__all__ = ["RepLoraConfig"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "identity": nn.Identity(),
}
GENERATORS = ("rows", "seed")
LEVELS = ("lower", "upper")
SHARES = ("parent", "model")


class RepLoraVariant(AdditiveVariant, SharedVariant):
    """One adapter of one layer, ``dW = s g_B(.) g_A(.)``.

    An affine map is one tensor, its bias the last column. ``"rows"``: every column a of A becomes
    ``P act(Q a + q) + p``, every row of B likewise. ``"seed"``: a vector of length r goes through
    two such maps of width h, and a last one, whose bias is LoRA's A (or B), to r * in numbers.
    """

    two_levels = "RepLoraConfig(generator_level='upper')"

    def __init__(self, config: "RepLoraConfig") -> None:
        self.generator = config.generator
        self.width = config.width
        self.activation = ACTIVATIONS[config.activation]
        self.level = config.generator_level
        self.share = config.share
        stages = ("trunk",) if self.generator == "rows" else ("seed", "trunk", "second")
        self.shared = tuple(f"lora_{stage}_{side}" for side in "AB" for stage in stages)

    @property
    def containers(self) -> tuple[str, ...]:
        """The network's shared maps and the last ones."""
        return (*self.shared, "lora_head_A", "lora_head_B")

    @property
    def upper_containers(self) -> tuple[str, ...]:
        """The network, where it belongs to the upper level."""
        return self.containers if self.level == "upper" else ()

    def group(self, name: str, layer: LoraLayer, adapter: str) -> str:
        """Return the module that the layer is a part of, or the model, with the rank."""
        place = parent_of(name) if self.share == "parent" else ""
        return f"{place} {layer.r[adapter]}"

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Add the network to the layer: biases and B's last map are zero, other weights start as
        those of nn.Linear; ``init_lora_weights=False`` leaves B's last map random too.
        """
        variant: Any = module.lora_variant[adapter_name]
        pair, h = factors(module, adapter_name), variant.width
        r, random = pair.A.shape[0], kwargs["config"].init_lora_weights is False
        for side, matrix in (("A", pair.A), ("B", pair.B)):
            maps = {"trunk": (h, r), "head": (r, h)}
            if variant.generator == "seed":
                maps = {"trunk": (h, r), "second": (h, h), "head": (matrix.numel(), h)}
                seed = torch.randn(r, dtype=matrix.dtype, device=matrix.device)
                add_parameter(module, f"lora_seed_{side}", adapter_name, seed)
            for stage, (rows, columns) in maps.items():
                bias = stage != "head" or variant.generator == "rows"
                start = matrix.new_empty(rows, columns + bias).uniform_(-1, 1) / columns**0.5
                if (stage, side) == ("head", "B") and not random:
                    start.zero_()
                if bias:  # else A's columns start as the biases alone make them: all but equal
                    start[:, -1] = 0
                add_parameter(module, f"lora_{stage}_{side}", adapter_name, start)
        if variant.generator == "rows" and not random:
            with torch.no_grad():  # the head is zero, so this need not be
                nn.init.kaiming_uniform_(pair.B, a=5**0.5)

    def side_by_side(self, layer: LoraLayer, adapter: str, pair: Factors) -> Factors:
        """Return the factors that the network makes."""
        A = self._made(layer, adapter, "A", pair.A)
        B = self._made(layer, adapter, "B", pair.B.T if self.generator == "rows" else pair.B)
        return pair._replace(A=A, B=B.T.contiguous() if self.generator == "rows" else B)

    def _made(self, layer: LoraLayer, adapter: str, side: str, matrix: Tensor) -> Tensor:
        def kept(stage: str) -> Tensor:
            # The layer that keeps it may be elsewhere, or a layer alone in another precision.
            weight: Tensor = getattr(self.keeper(layer), f"lora_{stage}_{side}")[adapter]
            return weight.to(matrix)

        head: Tensor = getattr(layer, f"lora_head_{side}")[adapter]
        trunk = kept("trunk")
        if self.generator == "rows":
            return _affine(head, self.activation(_affine(trunk, matrix)))
        hidden = self.activation(_affine(trunk, kept("seed")[:, None]))
        hidden = self.activation(_affine(kept("second"), hidden))
        made: Tensor = matrix + (head @ hidden).view_as(matrix)
        return made

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return ``result + s B A x``, A and B made by the network."""
        variant = module.lora_variant[active_adapter]
        assert isinstance(variant, RepLoraVariant)
        made = variant.side_by_side(module, active_adapter, factors(module, active_adapter))
        hidden = F.linear(module.lora_dropout[active_adapter](x), made.A)
        return result + F.linear(hidden, made.B) * made.scale

    def folded_scale(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return 1: what the network makes is LoRA's."""
        return torch.ones(1)

    def delta_weight(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return ``s B A``, shape ``(out, in)``, in the precision of the factors."""
        made = self.side_by_side(layer, adapter, factors(layer, adapter))
        dtype = widen(made.A.dtype)
        return (made.scale * (made.B.to(dtype) @ made.A.to(dtype))).to(made.A.dtype)


@dataclass
class RepLoraConfig(BiLevelConfig):
    """Configuration of RepLoRA, for ``peft.get_peft_model``; every option of ``LoraConfig`` and
    more.

    The last map of B's network is zero: the model starts as the frozen one, and that map is the
    first to get a gradient. ``Differs from the paper: not published``: the width, the activation
    and all that the network starts at are ours.

    Args:
        generator: ``"rows"``: every column of A and row of B, vectors of length r, goes through the
            network, a few thousand numbers; ``"seed"``: the network makes the whole matrix of one
            vector of length r, as the paper is read, with many times the parameters of LoRA.
        width: the hidden width h.
        activation: ``"relu"``, ``"gelu"`` or ``"identity"``.
        share: the modules of one ``"parent"`` (query and value of a layer) share the network up to
            its last map; or all of the ``"model"`` with the same rank do.
        generator_level: ``"lower"``, the paper's: one level; ``"upper"``: held-out data fit the
            network, training data its inputs (``Differs from the paper``).

    Example:
        >>> from adapters import RepLoraConfig
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> before = net(torch.ones(1, 4))
        >>> model = get_peft_model(net, RepLoraConfig(r=2, target_modules=["0"]))
        >>> bool((model(torch.ones(1, 4)) == before).all())
        True

    Reference: Truong et al. (2025), arXiv:2502.03044.
    """

    generator: Literal["rows", "seed"] = field(
        default="rows", metadata={"help": "Factors made by 'rows' or from a 'seed'."}
    )
    width: int = field(default=64, metadata={"help": "The hidden width of the network."})
    activation: Literal["relu", "gelu", "identity"] = field(
        default="relu", metadata={"help": "The activation: 'relu', 'gelu' or 'identity'."}
    )
    share: Literal["parent", "model"] = field(
        default="parent", metadata={"help": "Share the network in the 'parent' or the 'model'."}
    )
    generator_level: Literal["lower", "upper"] = field(
        default="lower",
        metadata={
            "help": "The level of the network: 'lower' or 'upper'.",
            "is_lora_variant": True,
        },
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"generator_level"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = REPLORA
        for option, known in (
            ("generator", GENERATORS),
            ("activation", tuple(ACTIVATIONS)),
            ("share", SHARES),
            ("generator_level", LEVELS),
        ):
            if getattr(self, option) not in known:
                raise ValueError(f"{option} must be one of {known}, got {getattr(self, option)!r}")
        check_whole("width", self.width)

    def variant(self) -> RepLoraVariant:
        """Return what the method adds to a layer."""
        return RepLoraVariant(self)


REPLORA = register("REPLORA", RepLoraConfig, SharingModel)


def _affine(weight: Tensor, columns: Tensor) -> Tensor:
    """Return ``W x + b`` for every column x, b the last column of the weight."""
    return weight[:, :-1] @ columns + weight[:, -1:]
