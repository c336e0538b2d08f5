"""The named implicit methods: a linear solver, a way to take products, and its defaults."""

from __future__ import annotations

from blo.derivatives.differences import FiniteDifference
from blo.derivatives.exact import Exact
from blo.derivatives.products import ProductRule
from blo.linear.bicgstab import BiCGSTAB
from blo.linear.cg import CG
from blo.linear.direct import Dense
from blo.linear.gmres import GMRES
from blo.linear.minres import MINRES
from blo.linear.neumann import Neumann
from blo.linear.normal_cg import NormalCG
from blo.linear.nystrom import Nystrom
from blo.linear.settings import check_warm_start
from blo.linear.system import Preconditioner
from blo.methods.implicit import Implicit, OneStep


def minres(
    max_products: int = 20,
    *,
    rtol: float | None = None,
    damping: float = 0.0,
    preconditioner: Preconditioner | None = None,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with at most `max_products` products of MINRES.

    For lower Hessians of any signature; where they are positive definite, its residual is at most
    that of `cg` and its error a little larger. Costs one gradient, at most `max_products` Hessian
    products and one mixed product.

    Args:
        max_products: at most this many Hessian products.
        rtol: relative residual to stop at; None stops near the rounding error.
        damping: added to the diagonal of the Hessian.
        preconditioner: an approximate inverse, see `MINRES`.
        warm_start: start each solve from the solution before it, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import hypergradient, minres
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> concave = lambda x, y: -g(x, y)  # its stationary point is 3 x too
        >>> result = hypergradient(f, concave, x, y, method=minres(5))
        >>> round(result.grads[0].item(), 6), result.info.status.value  # 3 (3 x - 1)
        (6.0, 'converged')

    Reference: Paige and Saunders (1975).
    """
    check_warm_start(warm_start, max_products)
    solver = MINRES(max_products, rtol, damping, preconditioner)
    return Implicit(solver, products, warm_start)


def gmres(
    max_products: int = 20,
    *,
    restart: int | None = None,
    rtol: float | None = None,
    damping: float = 0.0,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with at most `max_products` products of GMRES.

    Lower Hessians are symmetric, for which `minres` gives the same iterates in exact arithmetic at
    less memory; this one keeps converging where rounding spoils those. Costs one gradient, at most
    `max_products` Hessian products and one mixed product.

    Args:
        max_products: at most this many Hessian products.
        restart: see `GMRES`.
        rtol: relative residual to stop at; None stops near the rounding error.
        damping: added to the diagonal of the Hessian.
        warm_start: start each solve from the solution before it, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import gmres, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=gmres(5))
        >>> round(result.grads[0].item(), 6), result.info.status.value  # 3 (3 x - 1)
        (6.0, 'converged')

    Reference: Saad and Schultz (1986).
    """
    check_warm_start(warm_start, max_products)
    return Implicit(GMRES(max_products, restart, rtol, damping), products, warm_start)


def bicgstab(
    max_products: int = 20,
    *,
    rtol: float | None = None,
    damping: float = 0.0,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with at most `max_products` products of BiCGSTAB.

    Lower Hessians are symmetric, for which `cg` and `minres` need half the products; this one is
    for comparison, and for maps that are symmetric only in part. Costs one gradient, at most
    `max_products` Hessian products and one mixed product.

    Args:
        max_products: at most this many Hessian products.
        rtol: relative residual to stop at; None stops near the rounding error.
        damping: added to the diagonal of the Hessian.
        warm_start: start each solve from the solution before it, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import bicgstab, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=bicgstab(5))
        >>> round(result.grads[0].item(), 6), result.info.status.value  # 3 (3 x - 1)
        (6.0, 'converged')

    Reference: van der Vorst (1992).
    """
    check_warm_start(warm_start, max_products)
    return Implicit(BiCGSTAB(max_products, rtol, damping), products, warm_start)


def normal_cg(
    max_products: int = 20,
    *,
    rtol: float | None = None,
    damping: float = 0.0,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with at most `max_products` products of conjugate gradients
    on the normal equations.

    For lower Hessians of any signature; `minres` is cheaper. Costs one gradient, at most
    `max_products` Hessian products, two an iteration, and one mixed product.

    Args:
        max_products: at most this many Hessian products.
        rtol: relative residual to stop at; None stops near the rounding error.
        damping: added to the diagonal of the Hessian.
        warm_start: start each solve from the solution before it, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import hypergradient, normal_cg
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> concave = lambda x, y: -g(x, y)  # its stationary point is 3 x too
        >>> result = hypergradient(f, concave, x, y, method=normal_cg(4))
        >>> round(result.grads[0].item(), 6), result.info.status.value  # 3 (3 x - 1)
        (6.0, 'converged')

    Reference: Hestenes and Stiefel (1952); the default of JAXopt, Blondel et al. (2022),
        arXiv:2105.15183.
    """
    check_warm_start(warm_start, max_products - 1)
    return Implicit(NormalCG(max_products, rtol, damping), products, warm_start)


def nystrom(
    rank: int = 20,
    *,
    rho: float | None = None,
    gaussian: bool = False,
    seed: int = 0,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with the Nystrom approximation of the inverse Hessian.

    Costs one gradient, `rank` Hessian products (one more for a warm start, and one more without
    `rho`) and one mixed product.

    Args:
        rank: number of columns of the Hessian.
        rho: added to its eigenvalues; see `Nystrom`.
        gaussian: sketch with Gaussian directions.
        seed: of the sketch.
        warm_start: refine the solution before, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import hypergradient, nystrom
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> methods = nystrom(1), nystrom(1, rho=0.5)
        >>> [round(hypergradient(f, g, x, y, method=m).grads[0].item(), 6) for m in methods]
        [6.0, 4.8]

    Reference: Hataya and Yamada (2023), arXiv:2302.09726.
    """
    return Implicit(Nystrom(rank, rho, gaussian, seed), products, warm_start)


def darts(
    scale: float | None = None, *, radius: float | None = None, one_sided: bool = False
) -> OneStep:
    """Return DARTS: the derivative of one lower step, its mixed product by a finite difference.

    ``-s [g_x(y + e c) - g_x(y - e c)] / 2e``. Costs two gradients of the lower loss, or one with
    ``one_sided=True`` inside an `Engine`, and needs first derivatives only.

    Args:
        scale: the step `s`; None takes the lower learning rates (the paper's choice), which is
            exact for SGD, also with momentum and weight decay, but neither with dampening or
            nesterov nor for Adam (see `sama`). Betty computes with 1.0.
        radius: relative length of the difference; see `FiniteDifference`.
        one_sided: see `FiniteDifference`.

    Example:
        >>> import torch
        >>> from blo import darts, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=darts(0.1))
        >>> round(result.grads[0].item(), 6), result.info.num_gradients  # 0.1 * 6 (y - 1)
        (1.2, 2)

    Reference: Liu, Simonyan and Yang (2019), arXiv:1806.09055, equations 7 and 8.
    """
    return OneStep(scale, FiniteDifference(radius, one_sided))


def t1t2(scale: float | None = None) -> OneStep:
    """Return T1-T2: the derivative of one lower step, its mixed product exact.

    Args:
        scale: the step `s`; None takes the lower learning rates; see `darts`.

    Example:
        >>> import torch
        >>> from blo import hypergradient, t1t2
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=t1t2(0.1))
        >>> round(result.grads[0].item(), 6), result.info.num_products  # 0.1 * 6 (y - 1)
        (1.2, 1)

    Reference: Luketina, Berglund, Greff and Raiko (2016), arXiv:1511.06727.
    """
    return OneStep(scale, Exact())


def neumann(
    max_products: int = 20,
    *,
    scale: float | None = None,
    damping: float = 0.0,
    rtol: float | None = None,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with a truncated Neumann series of `max_products` products.

    Args:
        max_products: the series' last power of ``I - scale H``.
        scale: None takes one over the largest curvature that five power iterations see, which cost
            nothing beyond the series.
        damping: added to the diagonal of the Hessian.
        rtol: relative residual to stop at; None stops near the rounding error.
        warm_start: start each series from the solution before it, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import hypergradient, neumann
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> methods = [neumann(k, scale=0.25) for k in (0, 1, 2, 20)]  # 1 - scale g_yy = 1/2
        >>> [round(hypergradient(f, g, x, y, method=m).grads[0].item(), 4) for m in methods]
        [3.0, 4.5, 5.25, 6.0]

    Reference: Lorraine, Vicol and Duvenaud (2020), arXiv:1911.02590.
    """
    check_warm_start(warm_start, max_products)
    solver = Neumann(max_products, scale=scale, damping=damping, rtol=rtol)
    return Implicit(solver, products, warm_start)


def cg(
    max_products: int = 10,
    *,
    rtol: float | None = None,
    damping: float = 0.0,
    preconditioner: Preconditioner | None = None,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with at most `max_products` products of conjugate gradients.

    For positive definite lower Hessians; see `CG` for what happens on negative curvature.

    Args:
        max_products: at most this many Hessian products.
        rtol: relative residual to stop at; None stops near the rounding error.
        damping: added to the diagonal of the Hessian.
        preconditioner: an approximate inverse such as ``Nystrom(10)``, built from products that
            count among `max_products`.
        warm_start: start each solve from the solution before it, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import cg, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=cg(5))
        >>> result.grads[0].item(), result.info.status.value  # 3 (3 x - 1)
        (6.0, 'converged')

    Reference: Pedregosa (2016), arXiv:1602.02355; Rajeswaran et al. (2019), arXiv:1909.04630.
    """
    check_warm_start(warm_start, max_products)
    return Implicit(CG(max_products, rtol, damping, preconditioner), products, warm_start)


def dense(*, damping: float = 0.0, max_size: int = 4096) -> Implicit:
    """Return implicit differentiation with the Hessian built and solved directly: the reference for
    small problems.

    Args:
        damping: added to the diagonal of the Hessian.
        max_size: refuse more unknowns than this.

    Example:
        >>> import torch
        >>> from blo import dense, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> grads = hypergradient(f, g, x, y, method=dense()).grads
        >>> round(grads[0].item(), 6)  # 3 (3 x - 1)
        6.0
    """
    return Implicit(Dense(max_size, damping))
