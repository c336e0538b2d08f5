"""The graph of a gradient that a step was taken along, kept until its derivative is asked for.

The optimizer edits parameters in place, which the graph must not see: the gradient is taken at
copies that stand in the places of the parameters, and handed over as a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from blo.derivatives.composed import Composing
from blo.derivatives.graphs import GradientGraph, gradient_in_graph
from blo.derivatives.objective import Objective
from blo.derivatives.pullback import Gradient
from blo.derivatives.reduction import Reduction
from blo.linear.tensors import Tensors, clones, detach


@dataclass
class Pieces:
    """The gradient of a loss on each batch, in its graph.

    Attributes:
        graphs: one for each batch; empty once they were handed out.
        runs_python: whether Python runs when they are differentiated.
    """

    graphs: list[Gradient] = field(default_factory=list)
    runs_python: bool = False

    def add(self, loss: Tensor, wanted: Tensors, mode: Composing) -> Gradient:
        """Take the gradient of the loss on one batch, and return a copy without graph.

        Args:
            loss: in the graph of `wanted`.
            wanted: the leaves, or tensors in a graph that ends the loss's.
            mode: the context that the loss was evaluated in.

        Raises:
            RuntimeError: where it cannot be differentiated again.
        """
        gradient, runs_python = gradient_in_graph(loss, wanted, mode)
        self.runs_python |= runs_python
        self.graphs.append(gradient)
        known = clones(g for g in gradient if g is not None)
        if len(known) == len(gradient):
            return known
        found = iter(known)
        return tuple(None if g is None else next(found) for g in gradient)


@dataclass(frozen=True)
class KeptGraph:
    """The graph of a lower gradient, which the first to ask for it gets.

    Args:
        pieces: the gradient on each batch.
        leaves: what it is a function of, by problem.
        versions: the numbers of edits of the leaves, some of which share memory with parameters.
    """

    pieces: Pieces
    leaves: Mapping[str, Tensors]
    versions: tuple[int, ...]

    @staticmethod
    def begin(leaves: Mapping[str, Tensors]) -> KeptGraph:
        """Return a graph of these leaves, without a gradient yet."""
        return KeptGraph(Pieces(), leaves, versions(leaves.values()))

    def lower(self, name: str) -> Tensors:
        """Return the values of the parameters of a problem, without graph."""
        return detach(self.leaves[name])

    def of(self, upper: Sequence[str], lower: str) -> KeptGradient:
        """Return the gradient for the parameters of problem `lower`, as a function of those of the
        problems `upper` and its own.
        """
        return KeptGradient(self, tuple(t for a in upper for t in self.leaves[a]), lower)


@dataclass(frozen=True)
class KeptGradient:
    """A `KeptGraph` as a function of two lists of leaves."""

    graph: KeptGraph
    upper: Tensors
    name: str

    def taken(
        self, objectives: Sequence[Objective], reduction: Reduction
    ) -> tuple[GradientGraph, Tensors, Tensors] | None:
        """Return the gradient as a `GradientGraph` with its upper and lower leaves; None where it
        was handed out before, or a leaf was edited meanwhile.

        Args:
            objectives: the losses, each on its batch.
            reduction: over which processes the gradient is the mean.
        """
        pieces, lower = self.graph.pieces, self.graph.leaves[self.name]
        graphs, pieces.graphs = pieces.graphs, []
        if not graphs or versions(self.graph.leaves.values()) != self.graph.versions:
            return None
        found = GradientGraph.known(
            objectives, lower, self.upper, lower, reduction, graphs, pieces.runs_python
        )
        return found, self.upper, lower


def versions(vectors: Iterable[Tensors]) -> tuple[int, ...]:
    """Return the numbers of edits in place of the tensors in some vectors."""
    return tuple(t._version for tensors in vectors for t in tensors)
