"""Alternating training: the control without a hypergradient."""

from __future__ import annotations

from dataclasses import dataclass

from blo.methods.context import Context, Info, Requirements, Response, Status
from blo.methods.tensors import Tensors, zeros_like


@dataclass(frozen=True)
class Alternating:
    """The lower solution taken as a constant: ``(dy*/dx)^T c = 0``. Both levels train in turns, by
    first derivatives.

    A control, not a hypergradient: what is left of bi-level optimisation without its indirect term.
    """

    @property
    def requirements(self) -> Requirements:
        """Nothing is recorded."""
        return Requirements()

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return zeros."""
        info = Info(method=repr(self), point="after", scale=0.0, status=Status.TRUNCATED)
        return Response(zeros_like(context.after.upper), None, info)


def alternating() -> Alternating:
    """Return the control that trains the levels in turns and leaves the indirect gradient out."""
    return Alternating()
