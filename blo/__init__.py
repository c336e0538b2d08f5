"""Bi-level and multilevel optimisation in PyTorch, with hypergradients that can prove they are
right.
"""

from importlib.metadata import PackageNotFoundError, version

from blo.check import Report as Report
from blo.check import check_hypergradient as check_hypergradient
from blo.engine import Engine as Engine
from blo.graph import ProblemGraph as ProblemGraph
from blo.methods.alternating import Alternating as Alternating
from blo.methods.alternating import alternating as alternating
from blo.methods.amortised import Amortised as Amortised
from blo.methods.amortised import soba as soba
from blo.methods.bicgstab import BiCGSTAB as BiCGSTAB
from blo.methods.bicgstab import bicgstab as bicgstab
from blo.methods.context import Context as Context
from blo.methods.context import Info as Info
from blo.methods.context import Method as Method
from blo.methods.context import Point as Point
from blo.methods.context import Requirements as Requirements
from blo.methods.context import Response as Response
from blo.methods.context import Status as Status
from blo.methods.evolution import Evolution as Evolution
from blo.methods.evolution import evolution as evolution
from blo.methods.forward_mode import ForwardMode as ForwardMode
from blo.methods.forward_mode import forward_mode as forward_mode
from blo.methods.gauss_newton import GaussNewton as GaussNewton
from blo.methods.gauss_newton import SplitLoss as SplitLoss
from blo.methods.gmres import GMRES as GMRES
from blo.methods.gmres import gmres as gmres
from blo.methods.implicit import Implicit as Implicit
from blo.methods.implicit import OneStep as OneStep
from blo.methods.implicit import cg as cg
from blo.methods.implicit import darts as darts
from blo.methods.implicit import dense as dense
from blo.methods.implicit import neumann as neumann
from blo.methods.implicit import t1t2 as t1t2
from blo.methods.linear_system import LinearSolver as LinearSolver
from blo.methods.linear_system import Preconditioner as Preconditioner
from blo.methods.linear_system import Solution as Solution
from blo.methods.minres import MINRES as MINRES
from blo.methods.minres import minres as minres
from blo.methods.neumann import Neumann as Neumann
from blo.methods.normal_cg import NormalCG as NormalCG
from blo.methods.normal_cg import normal_cg as normal_cg
from blo.methods.nystrom import Nystrom as Nystrom
from blo.methods.nystrom import nystrom as nystrom
from blo.methods.penalty import ValuePenalty as ValuePenalty
from blo.methods.penalty import pbgd as pbgd
from blo.methods.perturbed import Perturbed as Perturbed
from blo.methods.perturbed import f2sa as f2sa
from blo.methods.products import Exact as Exact
from blo.methods.products import FiniteDifference as FiniteDifference
from blo.methods.sama import Sama as Sama
from blo.methods.sama import sama as sama
from blo.methods.solvers import CG as CG
from blo.methods.solvers import Dense as Dense
from blo.methods.solvers import Identity as Identity
from blo.methods.unrolling import Unrolled as Unrolled
from blo.methods.unrolling import unrolled as unrolled
from blo.problem import Problem as Problem
from blo.record import Record as Record
from blo.total import Hypergradient as Hypergradient
from blo.total import hypergradient as hypergradient

try:
    __version__ = version("blo-torch")
except PackageNotFoundError:  # a checkout that pip has not installed
    __version__ = "0+unknown"
