"""The inverse of a lower Hessian by Kronecker factors, for the solvers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blo.derivatives.kronecker_blocks import Block, Curved, blocks_of
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.nested import Spent
from blo.linear.settings import check_count, check_not_negative
from blo.linear.system import MatVec
from blo.linear.tensors import Tensors, leaves

# Of a block's mean eigenvalue: added to its eigenvalues where `damping` is None.
SMALL = 1e-3


@dataclass(frozen=True)
class KFAC:
    """The inverse of a Hessian whose blocks are Kronecker products, one a layer.

    For ``z = a W^T`` in the lower loss, the block of `W` is taken for ``A (x) G`` with ``A`` the
    mean of ``a a^T`` over the rows of the batch and ``G = sum g g^T``, where the `g` are rows at
    `z`:

    - of a `SplitLoss`, ``g = (dz_out/dz)^T u`` with ``E[u u^T] = l_zz`` at the outputs: the
      Gauss-Newton matrix. Exact for one linear layer whose ``l_zz`` is the same in every row, as of
      squared errors.
    - of any other loss its own gradients, the empirical Fisher matrix, rescaled by one Hessian
      product.

    It knows linear layers (either way round), embeddings and an adapter's factors by what the loss
    computes. Parameters that enter otherwise have a multiple of the identity each, from the same
    product. Several batches, positions and uses of one weight add up.

    Costs a gradient (`num_samples` of them for a `SplitLoss`), an eigendecomposition of each factor
    and, where it is needed, the product. The solver's damping and weight decay are added to the
    eigenvalues. On its own it is far from the inverse (`docs/methods.md`); a few products of `cg`
    or `minres` make it one.

    Differs from Martens and Grosse: the damping is added to the eigenvalues of the product and not
    shared by its factors, which costs nothing more here and serves better as a preconditioner.

    Args:
        damping: added to the eigenvalues, beside the solver's and weight decay; None adds a
            thousandth of a block's mean eigenvalue.
        num_samples: draws of `u` for a `SplitLoss`; None takes every output in its turn, which has
            no noise and costs a backward pass for each.
        seed: of the draws.

    Example:
        >>> import torch
        >>> from blo import SplitLoss, cg, hypergradient
        >>> a = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
        >>> g = SplitLoss(lambda x, y: a @ y[0], lambda z, x, y: (z - x[0]).square().mean())
        >>> x, y = (torch.ones(3, 1),), (torch.tensor([[0.25], [0.5], [1.0]]),)
        >>> for inverse in (None, KFAC(0.0, num_samples=None)):
        ...     method = cg(2, preconditioner=inverse)
        ...     result = hypergradient(lambda x, y: y[0].sum(), g, x, y, method=method)
        ...     print([round(v, 4) for v in result.grads[0].flatten().tolist()])  # 1/a
        [0.2185, 0.8151, 0.4958]
        [0.25, 0.5, 1.0]

    Reference: Martens and Grosse (2015), arXiv:1503.05671; Grosse and Martens (2016),
        arXiv:1602.01407, for several rows an example.
    """

    damping: float | None = None
    num_samples: int | None = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.damping is not None:
            check_not_negative("damping", self.damping)
        if self.num_samples is not None:
            check_count("num_samples", self.num_samples, at_least=1)

    @property
    def num_products(self) -> int:
        """Products that it takes, at most."""
        return 1

    def at(self, lower: LowerObjective, point: Point, spent: Spent) -> KroneckerInverse:
        """Return the inverse for `lower` at `point`; what it costs is added to `spent`."""
        return KroneckerInverse(self, lower, point, spent)

    def inverse(self, matvec: MatVec, like: Tensors, damping: float) -> MatVec:
        """Raise: products alone do not tell the factors."""
        raise TypeError(
            "KFAC() takes its factors from the layers of a lower loss, and a solver that is called "
            "with products has none; give the solver to a method, such as "
            "cg(10, preconditioner=KFAC())"
        )


@dataclass(frozen=True)
class KroneckerInverse:
    """`KFAC` at a point; the factors are taken when it is asked."""

    settings: KFAC
    lower: LowerObjective
    point: Point
    spent: Spent

    @property
    def num_products(self) -> int:
        """Products that it takes, at most."""
        return self.settings.num_products

    def inverse(self, matvec: MatVec, like: Tensors, damping: float) -> MatVec:
        """Return ``r -> P^{-1} r``."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        lower = leaves(self.point.lower)
        curved = blocks_of(
            self.lower, self.point.upper, lower, self.settings.num_samples, generator
        )
        self.spent.num_gradients += curved.num_gradients
        blocks, others = _measured(curved, matvec, like, self._decay(len(like)), generator)
        penalties = (curved.penalties.get(i, 0.0) for i in range(len(like)))
        known = zip(self._decay(len(like)), penalties, strict=True)
        shifts = tuple(damping + abs(d + p) for d, p in known)

        def apply(r: Tensors) -> Tensors:
            found: dict[int, Tensor] = {}
            for block in blocks:
                own = self.settings.damping
                extra = SMALL * block.curvature.mean if own is None else own
                found |= block.divided(r, shifts[block.first] + extra)
            for i, size in others.items():
                divisor = size + shifts[i] + (self.settings.damping or 0.0)
                found[i] = r[i] / divisor if divisor > 0.0 else r[i]
            return tuple(found[i] for i in range(len(r)))

        return apply

    def _decay(self, count: int) -> tuple[float, ...]:
        return self.lower.decay or (0.0,) * count


def _measured(
    curved: Curved,
    matvec: MatVec,
    like: Tensors,
    decay: tuple[float, ...],
    generator: torch.Generator,
) -> tuple[tuple[Block, ...], dict[int, float]]:
    """Return the blocks in the scale of `H`, and the mean curvature of each other tensor: all from
    one product with a random vector, in which they do not meet on average.
    """
    others = [i for i in range(len(like)) if i not in curved.covered]
    if not others and curved.is_scaled:
        return curved.blocks, {}
    drawn: dict[int, Tensor] = {}
    expected = 0.0
    for block in curved.blocks:
        own, size = block.draw(generator)
        drawn |= own
        expected += size
    for i in others:
        signs = torch.randint(0, 2, like[i].shape, generator=generator)
        drawn[i] = 2.0 * signs.to(like[i]) - 1.0
    direction = tuple(drawn[i].to(t) for i, t in enumerate(like))
    inner = [
        float((v.double() * (hv.double() - d * v.double())).sum())
        for v, hv, d in zip(direction, matvec(direction), decay, strict=True)
    ]
    sizes = {i: abs(inner[i]) / max(like[i].numel(), 1) for i in others}
    found = sum(x for i, x in enumerate(inner) if i in curved.covered)
    scale = 1.0 if curved.is_scaled or not expected > 0.0 else found / expected
    usable = scale if math.isfinite(scale) and scale > 0.0 else 1.0
    return tuple(b.scaled(usable) for b in curved.blocks), sizes
