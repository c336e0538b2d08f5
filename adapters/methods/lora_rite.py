"""LoRA-RITE: an adaptive optimizer whose updates do not depend on how LoRA is factorised.

``dW = s B A`` stays the same under ``(R A, B R^-1)``, but what Adam does next does not. Write
``X = B``, ``Y = A^T`` and ``Y = U R`` (QR): the gradient ``grad_X R^-1 = G U``, G the gradient with
respect to ``X Y^T``, has lost the magnitude of Y, and moments in the basis U move to the next basis
by ``P = U_t^T U_{t-1}``. For X, and the same for Y with the roles swapped::

    g = grad_X R^-1
    V = beta2 P V P^T + (1 - beta2) g^T g / rows
    rho = beta2 (rho + max_i (eig_i(V) - eig_i(P V P^T)))    what V lost in the move
    M = beta1 M P^T + (1 - beta1) g (V + rho I)^(-1/2)
    X = X - lr M R^-T

Reference: Yen et al. (2025), arXiv:2410.20625.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapters.glue.adapted import at_least_one, lora_layers
from adapters.glue.checks import check_non_negative, check_positive
from adapters.glue.factors import factors
from adapters.glue.norms import widen

__all__ = ["LoraRite", "lora_pairs"]


class _Side(NamedTuple):
    """One factor of a pair, its rows those of X or Y, in the precision of the computation."""

    parameter: Tensor
    transposed: bool
    """Whether the parameter is Y^T."""
    gradient: Tensor
    """``grad_X R^-1``, shape ``(rows, rank)``."""
    basis: Tensor
    """U of the other factor, shape ``(other rows, rank)``."""
    inverse: Tensor
    """The pseudo-inverse of R of the other factor, shape ``(rank, rank)``."""


def lora_pairs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return the factors (A, B) of every active LoRA adapter, as `LoraRite` takes them.

    Args:
        model: a model with PEFT's own LoRA, or with an adapter of this package.

    Raises:
        ValueError: if the model has no active LoRA adapter.

    Example:
        >>> from adapters import lora_pairs
        >>> from peft import LoraConfig, get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))
        >>> [(tuple(A.shape), tuple(B.shape)) for A, B in lora_pairs(model)]
        [((2, 4), (3, 2))]
    """
    found = at_least_one(lora_layers(model), model, what="active LoRA adapter", config="LoraConfig")
    pairs = (factors(layer, adapter) for _, adapter, layer in found)
    return [(pair.A, pair.B) for pair in pairs]


class LoraRite(torch.optim.Optimizer):
    """The optimizer LoRA-RITE, over pairs of LoRA factors.

    The change of ``B A`` in a step is the same for every factorisation of the same ``B A``. A
    factor is moved only where the other is not zero: from PEFT's start, B = 0, the first step moves
    B alone. Decays are corrected for the start, as in Adafactor. Clipping gradients before the step
    depends on the factorisation; use `max_norm`. Not differentiable: not for unrolling.

    Args:
        pairs: the factors, A ``(rank, in)`` and B ``(out, rank)``, of each module.
        lr: the learning rate.
        betas: decays of the first and the second moment, in [0, 1).
        eps: added to the root of the second moment.
        escape: add rho; the authors' code leaves it out by default.
        max_norm: the largest norm of the gradients g of all pairs together, which are scaled down
            to it; 1 in the authors' code. None does not.
        weight_decay: decoupled, multiplied by the learning rate.
        others: parameters that are no factors, such as heads and biases: updated by AdamW with the
            same settings.

    Raises:
        ValueError: if a setting is out of its range, or the shapes of a pair do not fit.

    Example:
        >>> from adapters import LoraRite, lora_pairs
        >>> from peft import LoraConfig, get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))
        >>> optimizer = LoraRite(lora_pairs(model), lr=1e-3)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Reference: Yen et al. (2025), arXiv:2410.20625.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Tensor, Tensor]],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        escape: bool = True,
        max_norm: float | None = None,
        weight_decay: float = 0.0,
        others: Iterable[Tensor] = (),
    ) -> None:
        check_non_negative("lr", lr)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas!r}")
        check_non_negative("eps", eps)
        if max_norm is not None:
            check_positive("max_norm", max_norm)
        check_non_negative("weight_decay", weight_decay)
        parameters = []
        for A, B in pairs:
            if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
                raise ValueError(
                    "pairs must hold A of shape (rank, in) and B of shape (out, rank), got "
                    f"{tuple(A.shape)} and {tuple(B.shape)}; use lora_pairs(model)"
                )
            if A.shape[0] > min(A.shape[1], B.shape[0]):
                raise ValueError(
                    f"pairs must have a rank of at most {min(A.shape[1], B.shape[0])}, the smaller "
                    f"side of the module, got {A.shape[0]}"
                )
            parameters += [A, B]
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "escape": escape,
            "max_norm": max_norm,
            "weight_decay": weight_decay,
        }
        groups = [{"params": parameters, "pairs": True}]
        if rest := list(others):
            groups.append({"params": rest, "pairs": False})
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every pair whose factors both have a gradient, and the others."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = group["params"]
            if not group["pairs"]:
                for parameter in parameters:
                    if parameter.grad is not None:
                        self._adam(parameter, group)
                continue
            sides = [
                side
                for A, B in zip(parameters[::2], parameters[1::2], strict=True)
                if A.grad is not None and B.grad is not None
                for side in _sides(A, B)
            ]
            shrink = 1.0
            if group["max_norm"] is not None and sides:
                norms = torch.stack([side.gradient.norm() for side in sides])
                shrink = min(1.0, group["max_norm"] / max(float(norms.norm()), 1e-30))
            for side in sides:
                self._update(side, shrink * side.gradient, group)
        return loss

    def _update(self, side: _Side, g: Tensor, group: dict[str, Any]) -> None:
        state = self.state[side.parameter]
        if not state:
            rank = g.shape[1]
            state["step"] = 0
            state["basis"] = torch.zeros_like(side.basis)
            state["second"] = g.new_zeros(rank, rank)
            state["escaped"] = g.new_zeros(())
            state["first"] = torch.zeros_like(g)
        state["step"] += 1
        beta1, beta2 = (_corrected(beta, state["step"]) for beta in group["betas"])
        P = side.basis.T @ state["basis"].to(g.dtype)
        before = state["second"].to(g.dtype)
        moved = _symmetric(P @ before @ P.T)
        lost = torch.linalg.eigvalsh(before) - torch.linalg.eigvalsh(moved)
        V = beta2 * moved + (1 - beta2) * g.T @ g / g.shape[0]
        rho = beta2 * (state["escaped"].to(g.dtype) + lost.max().clamp(min=0))
        S = g @ _inverse_root(V, rho if group["escape"] else torch.zeros_like(rho), group["eps"])
        M = beta1 * state["first"].to(g.dtype) @ P.T + (1 - beta1) * S
        state.update(basis=side.basis, second=V, escaped=rho, first=M)
        update = M @ side.inverse.T
        _apply(side.parameter, update.T if side.transposed else update, group)

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        g = parameter.grad.to(widen(parameter.dtype))
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["first"] = torch.zeros_like(g)
            state["second"] = torch.zeros_like(g)
        state["step"] += 1
        beta1, beta2 = (_corrected(beta, state["step"]) for beta in group["betas"])
        first = beta1 * state["first"].to(g.dtype) + (1 - beta1) * g
        second = beta2 * state["second"].to(g.dtype) + (1 - beta2) * g.square()
        state.update(first=first, second=second)
        _apply(parameter, first / (second.sqrt() + group["eps"]), group)


def _sides(A: Tensor, B: Tensor) -> list[_Side]:
    """Return both factors of a pair, each in the basis of the other."""
    assert A.grad is not None
    assert B.grad is not None
    dtype = widen(A.dtype)
    X, Y = B.to(dtype), A.to(dtype).T
    (U_X, R_X), (U_Y, R_Y) = torch.linalg.qr(X), torch.linalg.qr(Y)
    X_inverse, Y_inverse = torch.linalg.pinv(R_X), torch.linalg.pinv(R_Y)
    return [
        _Side(A, True, A.grad.to(dtype).T @ X_inverse, U_X, X_inverse),
        _Side(B, False, B.grad.to(dtype) @ Y_inverse, U_Y, Y_inverse),
    ]


def _apply(parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
    decayed = (1 - group["lr"] * group["weight_decay"]) * parameter.to(update.dtype)
    parameter.copy_(decayed - group["lr"] * update)


def _inverse_root(V: Tensor, rho: Tensor, eps: float) -> Tensor:
    """Return ``(V + rho I)^(-1/2)`` with eps added to the roots, for V positive semi-definite."""
    values, vectors = torch.linalg.eigh(_symmetric(V))
    roots = (values.clamp(min=0) + rho).sqrt() + eps
    root: Tensor = (vectors / roots) @ vectors.T
    return root


def _symmetric(V: Tensor) -> Tensor:
    return (V + V.T) / 2


def _corrected(beta: float, step: int) -> float:
    """Return the decay with which an average that starts at zero needs no further correction."""
    decay: float = beta * (1 - beta ** (step - 1)) / (1 - beta**step)
    return decay
