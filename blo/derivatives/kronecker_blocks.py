"""The layers of a lower loss and their curvature as Kronecker products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo.derivatives.gauss_newton import observed, says_its_outputs
from blo.derivatives.graphs import twice_differentiable
from blo.derivatives.linear_maps import LinearMap, LinearMaps
from blo.derivatives.lower import LowerObjective
from blo.derivatives.objective import Objective
from blo.linear.kronecker import Covariance, Diagonal, Factor, Kronecker
from blo.linear.tensors import Tensors

# The curvature at the outputs is a dense matrix for each of their rows.
MOST_OUTPUTS = 1024


@dataclass(frozen=True)
class Block:
    """One layer: its weight, its bias or both.

    Attributes:
        weight: the number of the weight among the lower parameters, or None.
        bias: the number of the bias, or None.
        is_transposed: the weight is held as ``(in, out)``.
        curvature: ``A (x) G``, of a matrix ``(out, in)`` to which the bias is a further column.
    """

    weight: int | None
    bias: int | None
    is_transposed: bool
    curvature: Kronecker

    @property
    def members(self) -> tuple[int, ...]:
        """The numbers of its parameters."""
        return tuple(i for i in (self.weight, self.bias) if i is not None)

    @property
    def first(self) -> int:
        """The number of one of its parameters."""
        return self.members[0]

    def scaled(self, factor: float) -> Block:
        """Return the block with its curvature multiplied by a number."""
        curvature = replace(self.curvature, scale=self.curvature.scale * factor)
        return replace(self, curvature=curvature)

    def draw(self, generator: torch.Generator) -> tuple[dict[int, Tensor], float]:
        """Return a random vector, as `Kronecker.draw` does."""
        v, size = self.curvature.draw(generator)
        return self._taken_apart(v), size

    def divided(self, r: Tensors, damping: float) -> dict[int, Tensor]:
        """Return its part of `r` divided by the damped curvature."""
        like = self.curvature.outputs.values
        parts = [] if self.weight is None else [self._upright(r[self.weight])]
        parts += [] if self.bias is None else [r[self.bias][:, None]]
        v = self.curvature.inverse(torch.cat([p.to(like) for p in parts], dim=1), damping)
        return {i: t.to(r[i]) for i, t in self._taken_apart(v).items()}

    def _upright(self, t: Tensor) -> Tensor:
        return t.T if self.is_transposed else t

    def _taken_apart(self, v: Tensor) -> dict[int, Tensor]:
        found = {}
        if self.bias is not None:
            v, found[self.bias] = (v, v[:, 0]) if self.weight is None else (v[:, :-1], v[:, -1])
        if self.weight is not None:
            found[self.weight] = self._upright(v)
        return found


@dataclass(frozen=True)
class Curved:
    """The layers that were found.

    Attributes:
        blocks: their curvature.
        penalties: the mean second derivative of the loss in those parameters that a `SplitLoss` has
            among its outputs, by number.
        is_scaled: whether all this is in the scale of the Hessian.
        num_gradients: what it cost.
    """

    blocks: tuple[Block, ...]
    penalties: dict[int, float]
    is_scaled: bool
    num_gradients: int

    @property
    def covered(self) -> frozenset[int]:
        """The numbers of their parameters."""
        return frozenset(i for block in self.blocks for i in block.members)


@dataclass(frozen=True)
class Rows:
    """What a use of a parameter adds to its factors: rows at its inputs and at its outputs."""

    use: LinearMap
    slopes: tuple[Tensor, ...]


def blocks_of(
    lower: LowerObjective,
    upper: Tensors,
    at: Tensors,
    num_samples: int | None,
    generator: torch.Generator,
) -> Curved:
    """Return the curvature of the layers of a lower loss at leaves.

    Raises:
        ValueError: if the losses multiply by no lower parameter, naming them.
        NotImplementedError: under several processes.
    """
    if not lower.reduction.is_local:
        raise NotImplementedError(
            "KFAC() takes its factors from the batch of one process, and there are "
            f"{lower.reduction.num_ranks}; use Nystrom() as a preconditioner, or none"
        )
    split = all(says_its_outputs(objective) for objective in lower.losses)
    found: list[Rows] = []
    penalties: dict[int, float] = defaultdict(float)
    cost, share = 0, 1.0 / len(lower.losses)
    for objective in lower.losses:
        if split:
            rows, added, count = _gauss_newton(objective, upper, at, num_samples, generator)
            for i, curvature in added.items():
                penalties[i] += share * curvature
        else:
            rows, count = _fisher(objective, upper, at)
        found, cost = [*found, *rows], cost + count
    blocks = _blocks(found, share)
    if not blocks:
        name = getattr(lower.losses[0], "name", "lower")
        raise ValueError(
            f"KFAC() found no linear layer and no embedding of the lower parameters in {name!r}; "
            "it needs modules (or torch.nn.functional.linear, embedding, matmul) that hold them, "
            "so use Nystrom() or no preconditioner here"
        )
    return Curved(blocks, dict(penalties), split, cost)


def _fisher(objective: Objective, upper: Tensors, at: Tensors) -> tuple[list[Rows], int]:
    """Return the gradient of the loss at the outputs of each use."""
    with twice_differentiable(objective, upper, at) as evaluate:
        with LinearMaps(at) as maps:
            loss = evaluate()
        slopes = _slopes((loss,), maps.found, (torch.ones_like(loss),))
    return [Rows(use, (s,)) for use, s in zip(maps.found, slopes, strict=True)], 1


def _gauss_newton(
    objective: Objective,
    upper: Tensors,
    at: Tensors,
    num_samples: int | None,
    generator: torch.Generator,
) -> tuple[list[Rows], dict[int, float], int]:
    """Return rows whose outer products add up, on average, to ``(dz_out/dz)^T l_zz dz_out/dz``, and
    the curvature of parameters that are outputs themselves.
    """
    numbers = {id(p): i for i, p in enumerate(at)}
    observer, objective = observed(objective)
    with twice_differentiable(objective, upper, at) as evaluate:
        with LinearMaps(at) as maps:
            loss = evaluate()
        pairs = list(zip(observer.outputs, observer.at_leaves, strict=True))
        direct = {numbers[id(z)]: _mean(loss, leaf) for z, leaf in pairs if id(z) in numbers}
        outputs = tuple(z for z, _ in pairs if id(z) not in numbers)
        roots = [_root(loss, leaf) for z, leaf in pairs if id(z) not in numbers]
        draws = _columns(roots) if num_samples is None else _drawn(roots, num_samples, generator)
        slopes = [_slopes(outputs, maps.found, draw) for draw in draws]
    rows = [Rows(use, tuple(s[i] for s in slopes)) for i, use in enumerate(maps.found)]
    return rows, direct, len(draws)


def _mean(loss: Tensor, z: Tensor) -> float:
    """Return the mean of the diagonal of ``l_zz``, as if its entries did not meet in the loss."""
    (slope,) = torch.autograd.grad(loss, z, create_graph=True)
    if not slope.requires_grad:
        return 0.0
    (sums,) = torch.autograd.grad(slope, z, torch.ones_like(z), retain_graph=True)
    return float(sums.mean())


def _root(loss: Tensor, z: Tensor) -> Tensor:
    """Return ``S`` with ``S S^T = |l_zz|`` for each row of `z`, ``(rows, size, size)``, as if its
    rows did not meet in the loss.
    """
    size = z.shape[-1] if z.dim() else 1
    if size > MOST_OUTPUTS:
        raise ValueError(
            f"KFAC() takes the curvature of at most {MOST_OUTPUTS} outputs a row, got {size}; give "
            "the loss as a plain function, whose gradients it takes instead"
        )
    (slope,) = torch.autograd.grad(
        loss, z, create_graph=True, allow_unused=True, materialize_grads=True
    )
    if not slope.requires_grad:
        return z.new_zeros(z.numel() // size, size, size)
    columns = []
    for i in range(size):
        unit = torch.zeros_like(z).reshape(-1, size)
        unit[:, i] = 1.0
        (column,) = torch.autograd.grad(
            slope, z, unit.view_as(z), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        columns.append(column.reshape(-1, size))
    matrix = torch.stack(columns, dim=2)
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    root: Tensor = vectors * values.abs().sqrt()[:, None, :]
    return root


def _columns(roots: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return every column of every root, the others zero."""
    draws = []
    for k, root in enumerate(roots):
        for i in range(root.shape[-1]):
            columns = [torch.zeros_like(r[:, :, 0]) for r in roots]
            columns[k] = root[:, :, i]
            if bool(columns[k].any()):
                draws.append(columns)
    return draws


def _drawn(
    roots: Sequence[Tensor], num_samples: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """Return ``S e / sqrt(num_samples)`` for random signs `e`."""
    draws = []
    for _ in range(num_samples):
        signs = [torch.randint(0, 2, r.shape[:2], generator=generator).to(r) for r in roots]
        pairs = zip(roots, signs, strict=True)
        draws.append(
            [(r @ (2.0 * s - 1.0)[:, :, None])[:, :, 0] / num_samples**0.5 for r, s in pairs]
        )
    return draws


def _slopes(
    outputs: Tensors, uses: Sequence[LinearMap], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return ``d<outputs, weights>/dz`` at the outputs `z` of each use."""
    if not uses:
        return ()
    shaped = [w.to(z).view_as(z) for w, z in zip(weights, outputs, strict=True)]
    return torch.autograd.grad(
        outputs,
        [use.outputs for use in uses],
        shaped,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def _blocks(found: Sequence[Rows], share: float) -> tuple[Block, ...]:
    """Return a block for each layer; `share` is that of one loss in their mean."""
    layers: dict[tuple[int | None, int | None, bool, int | None], list[Rows]] = defaultdict(list)
    for rows in found:
        use = rows.use
        layers[use.weight, use.bias, use.is_transposed, use.num_embeddings].append(rows)
    seen: dict[int, int] = defaultdict(int)
    for weight, bias, *_ in layers:
        for i in {weight, bias} - {None}:
            seen[i] += 1  # type: ignore[index]
    return tuple(
        Block(weight, bias, transposed, Kronecker(_inputs(rows), _outputs(rows, share)))
        for (weight, bias, transposed, _), rows in layers.items()
        if all(seen[i] == 1 for i in (weight, bias) if i is not None)
    )


def _inputs(found: Sequence[Rows]) -> Factor:
    """Return ``A``, the mean of ``a a^T`` over the rows of all uses."""
    first = found[0].use
    if first.num_embeddings is not None:
        numbers = torch.cat([rows.use.inputs.reshape(-1) for rows in found])
        counts = torch.bincount(numbers, minlength=first.num_embeddings)
        return Diagonal(counts.to(_wide(first.outputs)) / len(numbers))
    inputs = []
    for rows in found:
        a = rows.use.inputs
        a = a.reshape(-1, a.shape[-1]).to(_wide(a))
        if first.weight is None:
            a = a[:, :0]
        if first.bias is not None:
            a = torch.cat(
                [a, torch.ones_like(a[:, :1]) if a.shape[1] else a.new_ones(len(a), 1)], 1
            )
        inputs.append(a)
    return Covariance.of(inputs, 1.0 / sum(len(a) for a in inputs))


def _outputs(found: Sequence[Rows], share: float) -> Factor:
    """Return ``G``, the sum of ``g g^T`` over the rows of all uses."""
    slopes = [s.reshape(-1, s.shape[-1]) for rows in found for s in rows.slopes]
    return Covariance.of([s.to(_wide(s)) for s in slopes], share)


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
