"""The hypergradient of two plain functions, by several methods, beside its closed form."""

import torch

from blo import cg, darts, dense, hypergradient, neumann, t1t2

torch.manual_seed(0)
a = torch.randn(5, 5, dtype=torch.float64)
hessian = a @ a.T + torch.eye(5)
x = torch.randn(5, dtype=torch.float64)


def lower_loss(upper, lower):
    (x,), (y,) = upper, lower
    return 0.5 * y @ hessian @ y - x @ y  # the minimiser is H^-1 x


def upper_loss(upper, lower):
    return lower[0].sum()


y = torch.linalg.solve(hessian, x)
exact = torch.linalg.solve(hessian, torch.ones_like(x))
for method in (dense(), cg(5), neumann(20), t1t2(0.1), darts(0.1)):
    result = hypergradient(upper_loss, lower_loss, (x,), (y,), method=method)
    error = float((result.grads[0] - exact).norm() / exact.norm())
    status = result.info.status.value if result.info.status else "one step"
    print(f"{type(method).__name__:9} {status:10} relative error {error:.1e}")
