"""CLoRA: stock LoRA kept away from fixed directions.

``dW = s B A`` with ``lambda (|A P_A|_F^2 + |P_B^T B|_F^2)`` added to the loss. The columns of P_A,
``(in, k)``, and P_B, ``(out, k)``, are random, orthonormal and fixed. Where the penalty is zero,
``dW P_A = 0`` and ``P_B^T dW = 0``: the update ignores k directions of its input and writes to none
of k directions of its output, which bounds what the frozen model can forget.

Reference: Lu et al. (2025), arXiv:2410.16801.
"""

import zlib

import torch
from torch import Tensor, nn

from adapters.glue.adapted import at_least_one, lora_layers
from adapters.glue.factors import factors
from adapters.glue.norms import widen
from adapters.glue.penalties import check_weight

__all__ = ["NullSpace"]


class NullSpace:
    """Penalty that puts fixed random directions into the null spaces of every LoRA update.

    weight * sum over layers of ``|A P_A|_F^2 + |P_B^T B|_F^2``, for factors as PEFT lays them out,
    A ``(r, in)`` and B ``(out, r)``. (The paper writes ``dW = A B^T``: its B is A transposed here,
    and the scale s is not part of either.) Part of the loss of the level that A and B belong to.
    PEFT's own LoRA, and every adapter of this package that has its factors.

    Args:
        weight: lambda, at least 0.
        num_directions: k, at least 1 and at most the smallest number of inputs or outputs of an
            adapted module.
        seed: the directions are a function of it, of the name of the module and of their number.

    Example:
        >>> from adapters import NullSpace
        >>> from peft import LoraConfig, get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))
        >>> NullSpace(0.1, num_directions=2)(model).shape
        torch.Size([])

    Reference: Lu et al. (2025), arXiv:2410.16801.
    """

    def __init__(self, weight: float, *, num_directions: int, seed: int = 0) -> None:
        check_weight(weight)
        if num_directions < 1:
            raise ValueError(f"num_directions must be at least 1, got {num_directions!r}")
        self.weight = weight
        self.num_directions = num_directions
        self.seed = seed
        self._drawn: dict[tuple[str, int, torch.device, torch.dtype], Tensor] = {}

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of the active adapters, a scalar.

        Raises:
            ValueError: if the model has no active LoRA adapter, or a module has fewer inputs or
                outputs than `num_directions`.
        """
        terms = []
        found = at_least_one(
            lora_layers(model), model, what="active LoRA adapter for NullSpace", config="LoraConfig"
        )
        for name, adapter, layer in found:
            pair = factors(layer, adapter)
            with torch.autocast(pair.A.device.type, enabled=False):
                for side, factor in (("in", pair.A), ("out", pair.B.T)):
                    factor = factor.to(widen(factor.dtype))
                    P = self.directions(f"{name}:{side}", like=factor)
                    terms.append((factor @ P).square().sum())
        return self.weight * torch.stack(terms).sum()

    def directions(self, name: str, *, like: Tensor) -> Tensor:
        """Return the directions for one side of one module: orthonormal columns, ``(features, k)``.

        Args:
            name: the module's name, a colon, and "in" for P_A or "out" for P_B.
            like: has the features in its last dimension, and the wanted device and precision.
        """
        features = like.shape[-1]
        if self.num_directions > features:
            raise ValueError(
                f"num_directions must be at most {features}, the features of {name!r}, got "
                f"{self.num_directions}"
            )
        key = (name, features, like.device, like.dtype)
        if key not in self._drawn:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
            shape = (features, self.num_directions)
            normal = torch.randn(shape, generator=generator, dtype=torch.float64)
            self._drawn[key] = torch.linalg.qr(normal).Q.to(like.device, like.dtype)
        return self._drawn[key]
