"""The gradient check of this library: hypergradients against finite differences through lower
problems that are solved again.
"""

from blo.check.hypergradients import check_hypergradient as check_hypergradient
from blo.check.metasmoothness import Metasmoothness as Metasmoothness
from blo.check.metasmoothness import metasmoothness as metasmoothness
from blo.check.report import Comparison as Comparison
from blo.check.report import Report as Report
