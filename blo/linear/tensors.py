"""Vector algebra over tuples of tensors: one vector of R^n, kept in the shapes of the parameters.

Every function is pure. The `torch._foreach_*` kernels do one launch for all tensors of a tuple.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

Tensors: TypeAlias = tuple[Tensor, ...]

PLAIN = (Tensor, nn.Parameter)  # types of tensors that are whole


def add(x: Tensors, y: Tensors) -> Tensors:
    """Return ``x + y``; a position whose two tensors differ in type has the wider one."""
    return tuple(torch._foreach_add(x, y)) if x else ()


def subtract(x: Tensors, y: Tensors) -> Tensors:
    """Return ``x - y``."""
    return tuple(torch._foreach_sub(x, y)) if x else ()


def axpy(alpha: float | Tensor, x: Tensors, y: Tensors) -> Tensors:
    """Return ``alpha x + y``; `alpha` is a number or a tensor of one element, of any type and
    device, and leaves the types of the tensors alone.
    """
    if not x:
        return ()
    if isinstance(alpha, Tensor):
        return add(scale(alpha, x), y)
    return tuple(torch._foreach_add(y, x, alpha=alpha))


def scale(alpha: float | Tensor | Sequence[float], x: Tensors) -> Tensors:
    """Return ``alpha x``; a sequence of numbers gives each tensor its own factor.

    A tensor `alpha` has one element, of any type and device. Each tensor keeps its type.
    """
    if not x:
        return ()
    if isinstance(alpha, Sequence):
        if len(alpha) != len(x):
            raise ValueError(f"alpha must have one factor a tensor: got {len(alpha)} for {len(x)}")
        return tuple(torch._foreach_mul(x, list(alpha)))
    if not isinstance(alpha, Tensor):
        return tuple(torch._foreach_mul(x, alpha))
    factor = alpha.reshape(())
    if factor.requires_grad or any(t.device != factor.device for t in x):
        # Torch's kernel has no gradient for the factor.
        scaled = tuple(t * factor.to(t.device) for t in x)
    else:
        scaled = tuple(torch._foreach_mul(x, factor))
    # A wider factor would promote the tensors without dimensions.
    return tuple(s if s.dtype == t.dtype else s.to(t.dtype) for s, t in zip(scaled, x, strict=True))


def dot(x: Tensors, y: Tensors) -> Tensor:
    """Return ``<x, y>``, a tensor without dimensions, on the device of the first tensor.

    Accumulated in the widest type among the tensors, half precision in float32.
    """
    if not x:
        return torch.zeros(())
    wide = _accumulator((*x, *y))
    if len(x) == 1 and x[0].dim() == 1 and x[0].dtype == y[0].dtype == wide:
        return _entire(torch.dot(x[0], y[0]))
    return sum_all(
        (a * b).sum(dtype=wide)
        if a.dtype == b.dtype == wide
        else (a.to(wide) * b.to(wide)).sum()  # before the product: half precision overflows early
        for a, b in zip(x, y, strict=True)
    )


def norm(x: Tensors) -> Tensor:
    """Return the Euclidean norm of the whole tuple, a tensor without dimensions.

    Accumulated in the widest type among the tensors, half precision in float32. Entries beyond the
    square root of that type's range overflow or vanish; see `length`.
    """
    if not x:
        return torch.zeros(())
    found = norms(x)
    if len(x) == 1:
        return found[0]
    gathered: Tensor = torch.linalg.vector_norm(torch.stack([n.to(found[0].device) for n in found]))
    return gathered


def norms(x: Tensors) -> list[Tensor]:
    """Return the Euclidean norm of each tensor, a tensor without dimensions on its device, all in
    the widest type among the tensors, at least float32.
    """
    if not x:
        return []
    wide = _accumulator(x)
    if len(x) == 1:
        return [_entire(torch.linalg.vector_norm(x[0], dtype=wide))]
    if any(map(_is_distributed, x)):  # beside others, torch's kernel does not take them
        return [_entire(torch.linalg.vector_norm(t, dtype=wide)) for t in x]
    return list(torch._foreach_norm(x, dtype=wide))


def length(x: Tensors) -> float:
    """Return the Euclidean norm of the whole tuple as a number, right for entries of any size.

    ``m |x / m|`` with the largest entry ``m`` where squares of entries would overflow or vanish.
    NaN if an entry is NaN, infinite if one is infinite.
    """
    if not x:
        return 0.0
    fast = float(norm(x).detach())
    wide = _accumulator(x)
    if squares_fit(fast, wide):
        return fast
    # Torch's infinity norm takes ten times as long.
    largest = [float(_entire(t.detach().abs().amax())) for t in x if t.numel()]
    if any(math.isnan(m) for m in largest):
        return math.nan
    m = max(largest, default=0.0)
    if m == 0.0 or m == math.inf:
        return m
    # By a tensor: division by a number is multiplication by its reciprocal, which may overflow.
    divisors = {t.device: torch.tensor(m, dtype=wide, device=t.device) for t in x}
    return m * float(norm(tuple(t.detach().to(wide) / divisors[t.device] for t in x)))


class Extent(NamedTuple):
    """The Euclidean norm of a tensor, and how many of its rows (entries, of a vector) it lives
    in.
    """

    length: float
    num_rows: int


def extents(x: Tensors) -> list[Extent]:
    """Return the extent of each tensor, right for entries of any size; 0 for one without entries.

    One pass over each tensor and one transfer; more for those whose squares overflow or vanish.
    Elsewhere a row counts whose squares do not vanish.
    """
    return extents_beside(x, ())[0]


def extents_beside(x: Tensors, y: Tensors) -> tuple[list[Extent], list[float]]:
    """Return the extent of each tensor of `x`, and the root of the mean square of the entries of
    each tensor of `y`, 0 for one without, in one transfer.
    """
    counted, rows = [], []
    for t in x:
        # Of each row at once: its norm says whether it is in use.
        flat = t.detach().flatten(1) if t.dim() > 1 else t.detach().reshape(-1)
        wide = _accumulator((t,))
        rows.append(torch.linalg.vector_norm(flat, dim=1, dtype=wide) if t.dim() > 1 else flat)
        counted.append((rows[-1] != 0).sum())
    found = numbers_of((*norms(tuple(rows)), *counted, *norms(detach(y))))
    n = len(x)
    known = [
        Extent(size, int(number)) if squares_fit(size, _accumulator((t,))) else _extent(t)
        for t, size, number in zip(x, found[:n], found[n : 2 * n], strict=True)
    ]
    lengths = zip(y, found[2 * n :], strict=True)
    return known, [size / math.sqrt(max(t.numel(), 1)) for t, size in lengths]


def root_mean_squares(x: Tensors) -> list[float]:
    """Return the root of the mean square of the entries of each tensor, 0 for one without."""
    return extents_beside((), x)[1]


def _extent(t: Tensor) -> Extent:
    rows = t.detach().flatten(1).any(1) if t.dim() > 1 else t.detach() != 0
    return Extent(length((t,)), int(rows.sum()))


def numel(x: Tensors) -> int:
    """Return the dimension of the vector."""
    return sum(t.numel() for t in x)


def zeros_like(x: Tensors) -> Tensors:
    """Return the zero vector in the shapes of `x`."""
    return tuple(torch.zeros_like(t) for t in x)


def detach(x: Iterable[Tensor]) -> Tensors:
    """Return the tensors cut from their graphs; memory is shared."""
    return tuple(t.detach() for t in x)


def clones(x: Iterable[Tensor]) -> Tensors:
    """Return copies of the tensors, without graph."""
    tensors = tuple(x)
    if not tensors or any(map(_is_distributed, tensors)):
        return tuple(t.detach().clone() for t in tensors)
    with torch.no_grad():
        return tuple(torch._foreach_clone(tensors))


def leaves(x: Iterable[Tensor]) -> Tensors:
    """Return fresh leaves that require gradients; memory is shared with `x`."""
    return tuple(t.detach().requires_grad_() for t in x)


def flatten(x: Tensors) -> Tensor:
    """Return one vector of shape ``(numel,)``."""
    return torch.cat([t.reshape(-1) for t in x])


def unflatten(flat: Tensor, like: Tensors) -> Tensors:
    """Return `flat`, of shape ``(numel,)``, cut into the shapes of `like`."""
    pieces = flat.split([t.numel() for t in like])
    return tuple(p.view_as(t) for p, t in zip(pieces, like, strict=True))


def average(vectors: Sequence[Tensors]) -> Tensors:
    """Return the mean of several vectors; a single one is returned as it is."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = add(total, vector)
    return total if len(vectors) == 1 else scale(1.0 / len(vectors), total)


def sum_all(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors without dimensions, on the device of the first."""
    first, *rest = map(_entire, terms)
    for term in rest:
        first = first + term.to(first.device)
    return first


def numbers_of(scalars: Iterable[Tensor]) -> list[float]:
    """Return tensors without dimensions as numbers, in one transfer from the device of the first.

    Types are mixed in float64, which holds counts too, where the device has it.
    """
    gathered = tuple(map(_entire, scalars))
    if not gathered:
        return []
    if len({(s.dtype, s.device) for s in gathered}) > 1:
        device = gathered[0].device
        wide = torch.float32 if device.type == "mps" else torch.float64
        gathered = tuple(s.to(device, wide) for s in gathered)
    numbers: list[float] = torch.stack(gathered).tolist()
    return numbers


def _is_distributed(tensor: Tensor) -> bool:
    return type(tensor) not in PLAIN and hasattr(tensor, "full_tensor")


def _entire(scalar: Tensor) -> Tensor:
    """Return a scalar of a distributed tensor as a plain one, on all processes."""
    if type(scalar) is Tensor:
        return scalar
    gather = getattr(scalar, "full_tensor", None)
    entire: Tensor = scalar if gather is None else gather()
    return entire


def squares_fit(norm: float, dtype: torch.dtype) -> bool:
    """Return whether squares that add up to `norm` squared neither overflow nor vanish."""
    limits = torch.finfo(dtype)
    # Above it, the squares that vanish are below rounding even for 1e10 entries.
    return 1e5 * math.sqrt(limits.tiny / limits.eps) < norm < math.inf


def _accumulator(x: Tensors) -> torch.dtype:
    """Return the widest type among some tensors, at least float32."""
    wide = torch.float32
    for dtype in {t.dtype for t in x}:
        if dtype != wide:
            wide = torch.promote_types(wide, dtype)
    return wide
