"""Linear systems ``(H + damping I) v = rhs`` as solvers see them, and what they return.

`H` is known by its products only. A `LinearSystem` holds its vectors packed, one flat tensor a
device, so that vector operations cost one kernel however many parameters there are; it scales the
right-hand side by a power of two, so that small cotangents do not underflow; and it counts.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from blo.linear.tensors import (
    Tensors,
    axpy,
    detach,
    norm,
    scale,
    squares_fit,
    subtract,
    sum_all,
    zeros_like,
)

# Eigenvalues below so many machine epsilons of the largest are taken for zero.
SINGULAR = 100


MatVec: TypeAlias = Callable[[Tensors], Tensors]


class Solution(NamedTuple):
    """An approximate solution of ``H v = rhs``.

    Attributes:
        value: `v`, in the shapes of the right-hand side. It is finite wherever the right-hand side
            is.
        status: how the solve ended.
        num_products: products with `H` used, those for an unknown scale, for the residual of a warm
            start and for a preconditioner included.
        residual: ``|rhs - H v| / |rhs|`` as the recurrence of the solver knows it; NaN where the
            solver does not know it.
        scale: the factor that the solver used in place of, or beside, the inverse; None where there
            is none.

    Example:
        >>> import torch
        >>> from blo import CG
        >>> solution = CG(5)(lambda v: (2 * v[0],), (torch.tensor([2.0, 4.0]),))
        >>> solution.value[0].tolist(), solution.num_products, solution.residual
        ([1.0, 2.0], 1, 0.0)
    """

    value: Tensors
    status: Status
    num_products: int
    residual: float
    scale: float | tuple[float, ...] | None = None


class LinearSolver(Protocol):
    """Anything that solves ``H v = rhs`` approximately.

    Example:
        >>> import torch
        >>> from blo import Implicit, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> def halve(matvec, rhs, init=None):  # g_yy = 2
        ...     return Solution((rhs[0] / 2,), Status.CONVERGED, num_products=0, residual=0.0)
        >>> hypergradient(f, g, x, y, method=Implicit(halve)).grads[0].item()  # 3 (3 x - 1)
        6.0
    """

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return an approximate solution, started from `init` where the solver iterates."""


class Preconditioner(Protocol):
    """An approximate inverse, built from products, symmetric and positive definite.

    Example:
        >>> import torch
        >>> from blo import CG
        >>> class Diagonal:  # for a diagonal H
        ...     num_products = 1
        ...     def inverse(self, matvec, like, damping):
        ...         (d,) = matvec((torch.ones_like(like[0]),))
        ...         return lambda r: (r[0] / (d + damping),)
        >>> H, rhs = torch.tensor([1.0, 2.0, 4.0]), (torch.ones(3),)
        >>> solvers = CG(9), CG(9, preconditioner=Diagonal())
        >>> [solver(lambda v: (H * v[0],), rhs).num_products for solver in solvers]
        [3, 2]
    """

    @property
    def num_products(self) -> int:
        """Products that building it takes, at most; they count among the solver's."""

    def inverse(self, matvec: MatVec, like: Tensors, damping: float) -> MatVec:
        """Return ``r -> P^{-1} r`` with `P` near ``H + damping I``.

        Args:
            matvec: ``v -> H v``, without damping.
            like: a vector of the shapes that `matvec` takes.
            damping: the solver's.
        """


@dataclass(frozen=True)
class Layout:
    """How a tuple of tensors is packed: one flat tensor a device, half precision as float32.

    Attributes:
        like: the tensors.
        groups: the positions in each flat tensor.
        dtype: of the flat tensors.
        sizes: of the tensors in each.
        is_alike: whether all are of that type, on one device.
    """

    like: Tensors
    groups: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    sizes: tuple[list[int], ...]
    is_alike: bool

    @staticmethod
    def of(like: Tensors) -> Layout:
        """Return the layout for vectors in the shapes, types and devices of `like`."""
        devices = dict.fromkeys(t.device for t in like)
        groups = [tuple(i for i, t in enumerate(like) if t.device == d) for d in devices]
        types, dtype = {t.dtype for t in like}, torch.float32
        for t in types:
            dtype = torch.promote_types(dtype, t)
        sizes = tuple([like[i].numel() for i in group] for group in groups)
        return Layout(like, tuple(groups), dtype, sizes, types == {dtype} and len(groups) == 1)

    def pack(self, v: Tensors) -> Tensors:
        """Return `v` as flat tensors, without graph."""
        if len(v) != len(self.like):
            raise ValueError(f"expected a vector of {len(self.like)} tensors, got {len(v)}")
        if self.is_alike:
            flat = [t.reshape(-1) for t in v]
            if flat[0].dtype == self.dtype:
                return ((torch.cat(flat) if len(flat) > 1 else flat[0].clone()).detach(),)
        return tuple(
            torch.cat([_cast(v[i].reshape(-1), self.dtype) for i in group]).detach()
            for group in self.groups
        )

    def checked(self, v: Tensors, given: Tensors) -> Tensors:
        """Return `v` without graph, and with memory of its own where it is that of `given`."""
        if len(v) != len(self.like):
            raise ValueError(f"expected a vector of {len(self.like)} tensors, got {len(v)}")
        held = {t.untyped_storage().data_ptr() for t in given}
        return tuple(t.clone() if t.untyped_storage().data_ptr() in held else t for t in detach(v))

    def unpack(self, packed: Tensors) -> Tensors:
        """Return flat tensors in the shapes and types they were packed from."""
        if self.is_alike:
            pieces = packed[0].split(self.sizes[0])
            return tuple([p.view(t.shape) for p, t in zip(pieces, self.like, strict=True)])
        found: dict[int, Tensor] = {}
        for flat, group, sizes in zip(packed, self.groups, self.sizes, strict=True):
            for i, piece in zip(group, flat.split(sizes), strict=True):
                found[i] = _cast(piece.view(self.like[i].shape), self.like[i].dtype)
        return tuple(found[i] for i in range(len(self.like)))


class Start(NamedTuple):
    """Where an iteration starts: an iterate, its residual vector and the residual's norm."""

    x: Tensors
    r: Tensors
    length: float


class LinearSystem:
    """``(H + damping I) v = rhs`` in packed vectors, and the count of its products.

    Attributes:
        layout: how vectors are packed.
        rhs: the right-hand side, packed and divided by a power of two near its largest entry.
        size: the norm of that.
        eps: the machine epsilon of the packed vectors.
        num_products: products taken so far.
    """

    def __init__(self, matvec: MatVec, rhs: Tensors, *, damping: float = 0.0) -> None:
        self.num_products = 0
        self._matvec = matvec
        self._damping = damping
        self._given = rhs
        self.layout = Layout.of(rhs)
        self.rhs = self.layout.pack(rhs)
        largest, size = _sizes(self.rhs)
        self._unit = _power_of_two(largest)
        scale_into(self.rhs, 1.0 / self._unit)
        self.eps = torch.finfo(self.layout.dtype).eps
        # Scaling by a power of two is exact, unless squares overflowed or vanished before it.
        fits = squares_fit(size, self.layout.dtype)
        self.size = size / self._unit if fits else float(norm(self.rhs))

    @property
    def num_unknowns(self) -> int:
        """The dimension of the vectors."""
        return sum(t.numel() for t in self.rhs)

    @property
    def trivial(self) -> Solution | None:
        """The answer where no solve is needed or possible: a right-hand side of zeros, or one that
        is not finite.
        """
        if self.size == 0.0:
            return Solution(zeros_like(self._given), Status.CONVERGED, 0, 0.0)
        if not math.isfinite(self.size):
            return Solution(self._given, Status.DIVERGED, 0, math.nan)
        return None

    def target(self, rtol: float | None) -> float:
        """Return the residual norm to stop at; None stands for ten times the machine epsilon of the
        right-hand side's type. It is never so small that its square underflows.
        """
        if rtol is None:
            rtol = 10 * max(torch.finfo(t.dtype).eps for t in self._given)
        return max(rtol, math.sqrt(torch.finfo(self.layout.dtype).tiny)) * self.size

    def product(self, v: Tensors) -> Tensors:
        """Return ``(H + damping I) v``."""
        hv = self.undamped_product(v)
        return hv if self._damping == 0.0 else axpy(self._damping, v, hv)

    def undamped_product(self, v: Tensors) -> Tensors:
        """Return ``H v``."""
        self.num_products += 1
        return self.layout.pack(self._matvec(self.layout.unpack(v)))

    def descend(self, v: Tensors, step: float) -> Tensors:
        """Take ``v - step (H + damping I) v`` for `v`, in place, and return the product."""
        if not self.layout.is_alike:
            product = self.product(v)
            add_into(v, -step, product)
            return product
        self.num_products += 1
        pieces = self.layout.unpack(v)
        product = self.layout.checked(self._matvec(pieces), pieces)
        if self._damping != 0.0:
            product = axpy(self._damping, pieces, product)
        add_into(pieces, -step, product)
        return product

    def singular_along(self, step: float, norm_h: float, length: float) -> bool:
        """Return whether a step is so long that `H` must be taken for singular along it.

        A step of that length takes the residual's norm `length` to zero only along an eigenvalue
        below ``SINGULAR * eps * norm_h``, and rounding in its product is a hundredth of `length`
        or more.
        """
        return not step * norm_h * SINGULAR * self.eps <= length

    def preconditioner(self, preconditioner: Preconditioner | None) -> MatVec:
        """Return ``r -> P^{-1} r`` on packed vectors; the products it takes are counted."""
        if preconditioner is None:
            return lambda r: r

        def counted(v: Tensors) -> Tensors:
            self.num_products += 1
            return self._matvec(v)

        pack, unpack = self.layout.pack, self.layout.unpack
        inverse = preconditioner.inverse(counted, self._given, self._damping)
        return lambda r: pack(inverse(unpack(r)))

    def start(self, init: Tensors | None) -> Start:
        """Return `init` with its residual, at one product; zero with the right-hand side where
        `init` is None, or no nearer to a solution than zero is. All are the caller's to edit: the
        right-hand side is not read again.
        """
        zero = Start(zeros_like(self.rhs), self.rhs, self.size)
        if init is None:
            return zero
        x = scale(1.0 / self._unit, self.layout.pack(init))
        r = subtract(self.rhs, self.product(x))
        length = float(norm(r))
        return Start(x, r, length) if length < self.size else zero

    def solution(
        self, x: Tensors, status: Status, length: float, factor: float | None = None
    ) -> Solution:
        """Return the packed iterate `x`, whose residual has the norm `length`, as a `Solution`."""
        scale_into(x, self._unit)
        value = self.layout.unpack(x)
        return Solution(value, status, self.num_products, length / self.size, factor)


class Basis:
    """Packed vectors, kept as the rows of one matrix a device."""

    def __init__(self, capacity: int, like: Tensors) -> None:
        self.count = 0
        self._rows = [t.new_empty(capacity, t.numel()) for t in like]

    def append(self, v: Tensors) -> None:
        """Add a vector."""
        for rows, t in zip(self._rows, v, strict=True):
            rows[self.count] = t
        self.count += 1

    def last(self) -> Tensors:
        """Return the vector added last."""
        return tuple(rows[self.count - 1] for rows in self._rows)

    def coefficients(self, v: Tensors) -> Tensor:
        """Return ``<b_i, v>`` for all i, shape ``(count,)``, on the device of the first tensor."""
        return sum_all(rows[: self.count] @ t for rows, t in zip(self._rows, v, strict=True))

    def combine(self, coefficients: Tensor) -> Tensors:
        """Return ``sum_i coefficients_i b_i``; `coefficients` may be shorter than the basis."""
        n = coefficients.numel()
        return tuple(coefficients.to(rows) @ rows[:n] for rows in self._rows)

    def orthogonalise(self, v: Tensors) -> tuple[Tensors, Tensor]:
        """Return the part of `v` orthogonal to an orthonormal basis, and the coefficients of the
        rest.

        Classical Gram-Schmidt, twice: as orthogonal as rounding allows (Giraud, Langou and
        Rozloznik, 2005).
        """
        first = self.coefficients(v)
        v = subtract(v, self.combine(first))
        second = self.coefficients(v)
        return subtract(v, self.combine(second)), first + second


def numbers(*scalars: Tensor) -> list[float]:
    """Return tensors of one element as numbers, with one wait for the device."""
    first = scalars[0]
    alike = all(s.dtype == first.dtype and s.device == first.device for s in scalars)
    values: list[float] = torch.stack(scalars if alike else [s.to(first) for s in scalars]).tolist()
    return values


def add_into(x: Tensors, alpha: float, y: Tensors) -> None:
    """Add ``alpha y`` to `x` in place: only to vectors that nobody else has seen, such as an
    iterate of a solver. New memory for each costs more than the addition.
    """
    torch._foreach_add_(x, y, alpha=alpha)


def scale_into(x: Tensors, alpha: float) -> None:
    """Multiply `x` by `alpha` in place; see `add_into`."""
    torch._foreach_mul_(x, alpha)


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype == dtype else t.to(dtype)


def _sizes(v: Tensors) -> tuple[float, float]:
    """Return the largest entry and the norm of packed vectors, in one wait for the device."""
    filled = [t.abs().max() for t in v if t.numel()]
    if not filled:
        return 0.0, 0.0
    *largest, size = numbers(*filled, norm(v))
    return (math.nan if any(map(math.isnan, largest)) else max(largest)), size


def _power_of_two(value: float) -> float:
    """Return the power of two next to `value`, where float32 holds it and its inverse."""
    exponent = math.frexp(value)[1] if math.isfinite(value) else 0
    return math.ldexp(1.0, min(max(exponent, -100), 100))


class Status(enum.Enum):
    """How a linear solve ended; truncation is normal in stochastic training.

    Example:
        >>> import torch
        >>> from blo import CG
        >>> H, rhs = torch.tensor([1.0, 2.0]), (torch.ones(2),)
        >>> CG(1)(lambda v: (H * v[0],), rhs).status, CG(2)(lambda v: (H * v[0],), rhs).status
        (<Status.TRUNCATED: 'truncated'>, <Status.CONVERGED: 'converged'>)
    """

    CONVERGED = "converged"
    TRUNCATED = "truncated"
    INDEFINITE = "indefinite"
    DIVERGED = "diverged"
