"""jaxopt 0.8.5, on the problems that can be written in JAX: regressions.

A round is one compiled function; what the optimizer above takes is handed to torch, as in the other
libraries, and the upper parameters back.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.peers.library import Absent, Entry, Library, Round, Train, register
from benchmarks.peers.task import Task


def find() -> None:
    """Import jaxopt, which warns that it is no longer developed; on one thread, as torch is."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jaxopt  # noqa: F401


def losses(task: Task) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """Return ``f(x, y)`` and ``g(x, y)`` in JAX: a regression with log penalties above.

    Raises:
        Absent: the problem is another one.
    """
    if task.data is None or task.problem not in ("ridge", "logistic"):
        raise Absent("this problem is not written in JAX")
    import jax
    import jax.numpy as jnp

    if task.y[0].dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)
    inputs, targets, more, others = (jnp.asarray(t.numpy()) for t in task.data)

    def error(found: Any, wanted: Any) -> Any:
        if task.problem == "ridge":
            return 0.5 * jnp.mean((found - wanted) ** 2)
        return jnp.mean(jax.nn.softplus(found) - (wanted > 0) * found)

    def g(x: Any, y: Any) -> Any:
        return error(inputs @ y, targets) + 0.5 * jnp.sum(jnp.exp(x) * y * y)

    def f(x: Any, y: Any) -> Any:
        return error(more @ y, others)

    return f, g


def stepped(task: Task, g: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return the lower steps, ``(y, x) -> y``."""
    import jax

    slope = jax.grad(g, argnums=1)

    def steps(y: Any, x: Any) -> Any:
        for _ in range(task.steps):
            y = y - task.lr * slope(x, y)
        return y

    return steps


def rounds(task: Task, f: Callable[[Any, Any], Any], end: Callable[[Any, Any], Any]) -> Round:
    """Return rounds that differentiate ``f(x, end(y, x))``."""
    import jax
    import jax.numpy as jnp

    if task.optimizer != "SGD" or task.from_upper:
        raise Absent("written for plain gradient steps")

    @jax.jit
    def once(x: Any, y: Any) -> Any:
        def above(x: Any) -> Any:
            reached = end(y, x)
            return f(x, reached), reached

        return jax.value_and_grad(above, has_aux=True)(x)

    optimizer, (p,) = task.upper_optimizer(), task.x
    y = jnp.asarray(task.y[0].detach().numpy())

    def taken() -> None:
        nonlocal y
        (loss, y), slope = once(jnp.asarray(p.detach().numpy()), y)
        float(loss)
        p.grad = torch.from_dlpack(slope)
        optimizer.step()

    return taken


def implicit(number: int) -> Train:
    """Return rounds with its conjugate gradients at the end of the steps."""

    def begin(task: Task) -> Round:
        f, g = losses(task)
        import jax
        from jaxopt.implicit_diff import custom_root
        from jaxopt.linear_solve import solve_cg

        def stationary(y: Any, x: Any) -> Any:
            return jax.grad(g, argnums=1)(x, y)

        solve = partial(solve_cg, maxiter=number, tol=0.0)
        return rounds(task, f, custom_root(stationary, solve=solve)(stepped(task, g)))

    return begin


def unrolled(task: Task) -> Round:
    """Return rounds that differentiate all steps."""
    f, g = losses(task)
    return rounds(task, f, stepped(task, g))


JAXOPT = register(
    Library(
        "jaxopt",
        "jaxopt",
        find,
        {
            "cg(10)": Entry(implicit(10)),
            "cg(20)": Entry(implicit(20)),
            "unrolled": Entry(unrolled),
        },
        is_torch=False,
    )
)
