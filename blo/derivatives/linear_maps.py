"""Where a loss multiplies by a parameter: linear layers and embeddings.

They are known by what is computed, not by the modules that compute it: an adapter's factors are
multiplied by functions, and GPT-2's layers hold their weights the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from blo.linear.tensors import Tensors


@dataclass(frozen=True)
class LinearMap:
    """One use of a parameter, ``outputs = inputs W^T + bias``.

    Attributes:
        weight: the number of `W` among the parameters; None where it is not one of them.
        bias: the number of the bias; None where it is not one of them.
        inputs: ``(..., in)``, or numbers of rows ``(...)`` for an embedding.
        outputs: ``(..., out)``, in the graph of the loss.
        is_transposed: `W` is held as ``(in, out)``.
        num_embeddings: how many rows an embedding has; None where this is none.
    """

    weight: int | None
    bias: int | None
    inputs: Tensor
    outputs: Tensor
    is_transposed: bool = False
    num_embeddings: int | None = None


class LinearMaps(TorchFunctionMode):
    """Collects, in a block, the uses of some parameters.

    Args:
        parameters: known by identity.

    Attributes:
        found: the uses, in order.
    """

    def __init__(self, parameters: Tensors) -> None:
        super().__init__()
        self._numbers = {id(p): i for i, p in enumerate(parameters)}
        self._parameters = parameters  # alive, so that no other tensor gets their identities
        self.found: list[LinearMap] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take note, and pass everything through."""
        outputs = func(*args, **(kwargs or {}))
        read = READERS.get(func)
        if read is not None and isinstance(outputs, Tensor) and outputs.requires_grad:
            use = read(args, kwargs or {})
            if use is not None:
                self._note(*use, outputs)
        return outputs

    def _note(self, kind: str, inputs: Tensor, weight: Tensor, bias: Any, outputs: Tensor) -> None:
        of_weight, of_bias = self._numbers.get(id(weight)), self._numbers.get(id(bias))
        if of_weight is None and of_bias is None:
            return
        size = weight.shape[0] if kind == "embedding" else None
        transposed = kind != "linear"
        use = LinearMap(of_weight, of_bias, inputs.detach(), outputs, transposed, size)
        self.found.append(use)


Use = tuple[str, Tensor, Tensor, Any]


def _linear(args: Any, kwargs: dict[str, Any]) -> Use | None:
    """Read ``linear(inputs, weight, bias=None)``."""
    inputs, weight, bias = _named(args, kwargs, "input", "weight", "bias")
    return ("linear", inputs, weight, bias) if weight.dim() == 2 else None


def _addmm(args: Any, kwargs: dict[str, Any]) -> Use | None:
    """Read ``addmm(bias, inputs, weight)``, GPT-2's layer."""
    bias, inputs, weight = _named(args, kwargs, "input", "mat1", "mat2")
    scaled = kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1
    return None if scaled or bias.dim() != 1 else ("transposed", inputs, weight, bias)


def _matmul(args: Any, kwargs: dict[str, Any]) -> Use | None:
    """Read ``matmul(inputs, weight)``."""
    inputs, weight = _named(args, kwargs, "input", "other" if "other" in kwargs else "mat2")
    of_rows = isinstance(inputs, Tensor) and isinstance(weight, Tensor) and weight.dim() == 2
    return ("transposed", inputs, weight, None) if of_rows and inputs.dim() > 0 else None


def _embedding(args: Any, kwargs: dict[str, Any]) -> Use | None:
    """Read ``functional.embedding(inputs, weight)``."""
    inputs, weight = _named(args, kwargs, "input", "weight")
    return "embedding", inputs, weight, None


def _torch_embedding(args: Any, kwargs: dict[str, Any]) -> Use | None:
    """Read ``torch.embedding(weight, indices)``."""
    weight, inputs = _named(args, kwargs, "weight", "indices")
    return "embedding", inputs, weight, None


def _named(args: Any, kwargs: dict[str, Any], *names: str) -> list[Any]:
    """Return the arguments with these names, in the order of their positions."""
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


READERS: dict[Any, Callable[[Any, dict[str, Any]], Use | None]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    F.embedding: _embedding,
    torch.embedding: _torch_embedding,
}
