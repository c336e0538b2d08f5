"""Bi-level and multilevel optimisation in PyTorch, with hypergradients that can prove they are
right.
"""

from importlib.metadata import PackageNotFoundError, version

from blo.check import Report as Report
from blo.check import check_hypergradient as check_hypergradient
from blo.derivatives.differences import FiniteDifference as FiniteDifference
from blo.derivatives.exact import Exact as Exact
from blo.derivatives.gauss_newton import GaussNewton as GaussNewton
from blo.derivatives.gauss_newton import SplitLoss as SplitLoss
from blo.derivatives.kfac import KFAC as KFAC
from blo.derivatives.lower import Point as Point
from blo.engine import Engine as Engine
from blo.engine import Stop as Stop
from blo.graph import ProblemGraph as ProblemGraph
from blo.linear.bicgstab import BiCGSTAB as BiCGSTAB
from blo.linear.cg import CG as CG
from blo.linear.direct import Dense as Dense
from blo.linear.direct import Identity as Identity
from blo.linear.gmres import GMRES as GMRES
from blo.linear.minres import MINRES as MINRES
from blo.linear.neumann import Neumann as Neumann
from blo.linear.normal_cg import NormalCG as NormalCG
from blo.linear.nystrom import Nystrom as Nystrom
from blo.linear.system import LinearSolver as LinearSolver
from blo.linear.system import Preconditioner as Preconditioner
from blo.linear.system import Solution as Solution
from blo.linear.system import Status as Status
from blo.loggers import JsonLines as JsonLines
from blo.loggers import TensorBoard as TensorBoard
from blo.methods.alternating import Alternating as Alternating
from blo.methods.alternating import alternating as alternating
from blo.methods.amortised import Amortised as Amortised
from blo.methods.amortised import soba as soba
from blo.methods.context import Context as Context
from blo.methods.context import Info as Info
from blo.methods.context import Method as Method
from blo.methods.context import Requirements as Requirements
from blo.methods.context import Response as Response
from blo.methods.evolution import Evolution as Evolution
from blo.methods.evolution import evolution as evolution
from blo.methods.forward_mode import ForwardMode as ForwardMode
from blo.methods.forward_mode import forward_mode as forward_mode
from blo.methods.implicit import Implicit as Implicit
from blo.methods.implicit import OneStep as OneStep
from blo.methods.named import bicgstab as bicgstab
from blo.methods.named import cg as cg
from blo.methods.named import darts as darts
from blo.methods.named import dense as dense
from blo.methods.named import gmres as gmres
from blo.methods.named import minres as minres
from blo.methods.named import neumann as neumann
from blo.methods.named import normal_cg as normal_cg
from blo.methods.named import nystrom as nystrom
from blo.methods.named import t1t2 as t1t2
from blo.methods.penalty import ValuePenalty as ValuePenalty
from blo.methods.penalty import pbgd as pbgd
from blo.methods.perturbed import Perturbed as Perturbed
from blo.methods.perturbed import f2sa as f2sa
from blo.methods.sama import Sama as Sama
from blo.methods.sama import sama as sama
from blo.methods.unrolling import Unrolled as Unrolled
from blo.methods.unrolling import unrolled as unrolled
from blo.problem import Problem as Problem
from blo.record import Record as Record
from blo.steps.clipping import Clip as Clip
from blo.steps.registry import register_update as register_update
from blo.two_level import Hypergradient as Hypergradient
from blo.two_level import hypergradient as hypergradient

try:
    __version__ = version("blo-torch")
except PackageNotFoundError:  # a checkout that pip has not installed
    __version__ = "0+unknown"
