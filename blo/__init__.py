"""Bi-level and multilevel optimisation in PyTorch, with hypergradients that can prove they are right."""

from blo.methods.implicit import Implicit, OneStep, cg, darts, dense, neumann, t1t2
from blo.methods.products import Exact, FiniteDifference
from blo.methods.solvers import CG, Dense, Identity, Neumann, Solution
from blo.methods.context import Status
from blo.total import Hypergradient, hypergradient
