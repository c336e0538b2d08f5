"""Random problem graphs for the engine and for the simulator, and their comparison.

A graph is drawn from a seed and a set of `FEATURES`; what is not in the set does not occur. `main`
runs any selection and lists the seeds on which the two differ:

    python tests/random_graphs.py --features levels siblings --seeds 0 100
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from simulator import How, Node, Simulator, Update
from torch import Tensor, nn

import blo

FEATURES = {
    "three levels": "up to three levels",
    "four levels": "up to four levels",
    "five levels": "up to five levels",
    "siblings": "two problems on a level",
    "skips": "losses that read problems further up, and further down for the top",
    "reads below": "problems between two others that read one below",
    "through solutions": "solutions that depend on a problem only through solutions below",
    "side by side": "problems side by side, one of which feels the other through one below",
    "apart": "problems that are felt through a solution and have no depth of their own",
    "steps": "one to three steps",
    "accumulation": "one to three batches an update",
    "sizes": "batches of different sizes",
    "schedulers": "learning rates that change",
    "groups": "options that differ from parameter to parameter",
    "momentum": "SGD with momentum, nesterov, dampening",
    "decay": "weight decay, coupled and decoupled",
    "adam": "Adam and AdamW",
    "maximize": "problems that maximise their loss",
    "mixed maximize": "problems that minimise over some parameters and maximise over others",
    "fixed below": "through_response=False",
    "one step": "t1t2",
    "differences": "darts, one-sided too",
    "sama": "sama",
    "unrolled": "unrolled, all steps or the last ones",
    "forward mode": "forward_mode",
    "alternating": "alternating",
}

# Methods by name: what the engine is given, what the simulator is given, and the relative error
# that their numerics allow.
METHODS: dict[str, tuple[Callable[[], Any], How, float]] = {
    "dense": (blo.dense, How("implicit"), 1e-6),
    "cg": (lambda: blo.cg(30), How("implicit"), 1e-6),
    "minres": (lambda: blo.minres(30), How("implicit"), 1e-6),
    "t1t2": (blo.t1t2, How("one step"), 1e-6),
    "t1t2(0.3)": (lambda: blo.t1t2(0.3), How("one step", scale=0.3), 1e-6),
    "darts": (blo.darts, How("one step"), 1e-5),
    "darts one-sided": (lambda: blo.darts(one_sided=True), How("one step"), 1e-4),
    "sama": (blo.sama, How("unrolled", 1), 1e-5),
    "unrolled": (blo.unrolled, How("unrolled"), 1e-6),
    "unrolled(1)": (lambda: blo.unrolled(1), How("unrolled", 1), 1e-6),
    "unrolled(2)": (lambda: blo.unrolled(2), How("unrolled", 2), 1e-6),
    "forward_mode": (blo.forward_mode, How("unrolled"), 1e-6),
    "alternating": (blo.alternating, How("alternating"), 1e-6),
}
_OF_FEATURE = {
    "one step": ("t1t2", "t1t2(0.3)"),
    "differences": ("darts", "darts one-sided"),
    "sama": ("sama",),
    "unrolled": ("unrolled", "unrolled(1)", "unrolled(2)"),
    "forward mode": ("forward_mode",),
    "alternating": ("alternating",),
}


class Graph:
    """Problems drawn at random: as nodes for the simulator, as problems for the engine.

    A `structure`, who reads whom from top to bottom and the level of each, is drawn unless given.

    Attributes:
        nodes: the problems, top to bottom.
        methods: the name of the method of each.
        tolerance: relative error that the numerics of these methods allow.
    """

    def __init__(
        self,
        seed: int,
        features: Collection[str],
        structure: tuple[dict[str, set[str]], dict[str, int]] | None = None,
    ) -> None:
        unknown = set(features) - set(FEATURES)
        if unknown:
            raise ValueError(f"features must be among {list(FEATURES)}, got {sorted(unknown)}")
        self.has = frozenset(features)
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        while True:
            self.reads, self.level = structure or self._structure()
            if structure or not self._structural_features() - self.has:
                break
        self.methods: dict[str, str] = {}
        sizes = {p: self._sizes() for p in self.reads}
        self._signs = {p: self._draw_signs(len(sizes[p])) for p in self.reads}
        for p in reversed(list(self.reads)):
            self.methods[p] = self._method(p)
        self.nodes = [self._node(p, sizes) for p in self.reads]
        self.tolerance = max(METHODS[m][2] for p, m in self.methods.items() if self.level[p])

    def simulator(self, **settings: str) -> Simulator:
        """The graph as the simulator sees it."""
        return Simulator(self.nodes, **settings)

    def engine(
        self,
        methods: Mapping[str, Any] | None = None,
        losses: Mapping[str, Callable[..., Any]] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> tuple[blo.Engine, list[Update]]:
        """The graph as the engine runs it, and the list that all updates are written to.

        `methods`, `losses` and `settings` (arguments of `Problem`) replace those of some problems.
        """
        modules = {
            n.name: nn.ParameterList([nn.Parameter(t.clone()) for t in n.start]) for n in self.nodes
        }
        updates: list[Update] = []
        levels: dict[int, list[blo.Problem]] = {}
        for n in self.nodes:
            problem = self._problem(n, modules, methods or {}, losses or {}, settings or {})
            _observe(problem, updates)
            levels.setdefault(n.level, []).append(problem)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "problem .* with through_response=False")
            return blo.Engine(blo.ProblemGraph(list(levels.values()))), updates

    def _problem(
        self,
        n: Node,
        modules: Mapping[str, nn.ParameterList],
        methods: Mapping[str, Any],
        losses: Mapping[str, Callable[..., Any]],
        settings: Mapping[str, Mapping[str, Any]],
    ) -> blo.Problem:
        loss = losses.get(n.name, n.loss)

        def closure(batch: Any) -> Tensor:
            return loss({k: tuple(m) for k, m in modules.items()}, batch)

        classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        groups = [{"params": [p], **o} for p, o in zip(modules[n.name], n.options, strict=True)]
        optimizer = classes[n.optimizer](groups, lr=1.0)
        arguments = {
            "steps": n.steps,
            "accumulate": n.accumulate,
            "method": METHODS[self.methods[n.name]][0](),
            "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, n.pace),
            "through_response": n.through_response,
        }
        if n.name in methods:
            arguments["method"] = methods[n.name]
        arguments |= settings.get(n.name, {})
        everything = list(modules.values())
        return blo.Problem(n.name, closure, everything, optimizer, list(n.batches), **arguments)

    # Drawing.

    def _structure(self) -> tuple[dict[str, set[str]], dict[str, int]]:
        """Who reads whom, top to bottom, and the level of each."""
        named = {3: "three levels", 4: "four levels", 5: "five levels"}
        most = max([2, *(n for n, f in named.items() if f in self.has)])
        count = most if self._coin(0.5) else self.random.randint(2, most)
        letters = iter("abcdefghi")
        rows = [[next(letters)]]
        spare = 2 if count < 4 else 1
        for _ in range(count - 1):
            double = "siblings" in self.has and spare > 0 and self._coin(0.5)
            spare -= double
            rows.append([next(letters) for _ in range(1 + double)])
        often = 0.5 if count < 4 else 0.25  # deep graphs are costly: keep them sparse
        reads: dict[str, set[str]] = {p: set() for row in rows for p in row}
        level = {p: i for i, row in enumerate(rows) for p in row}
        chain = "skips" not in self.has or self._coin(0.5)
        for i, row in enumerate(rows[1:], 1):
            for p in row:
                near = rows[i - 1]
                if chain:
                    reads[p].update(self.random.sample(near, self.random.randint(1, len(near))))
                if "skips" in self.has:
                    reads[p].update(a for r in rows[:i] for a in r if self._coin(often))
                if "reads below" in self.has:
                    reads[p].update(a for r in rows[i + 1 :] for a in r if self._coin(often))
        underneath = [p for row in rows[1:] for p in row]
        last = self.random.choice(rows[-1])
        reads["a"].add(last)
        reads["a"].update(p for p in underneath if self._coin(0.5))
        return reads, level

    def _structural_features(self) -> set[str]:
        """The features that the structure just drawn has, of those that are hard to avoid; a
        graph that is drawn again in any case has "refused".
        """
        reads, level = self.reads, self.level
        names = list(reads)
        pairs = [(p, q) for p in names for q in names if level[p] < level[q]]
        felt = {p: self._felt(p) for p in names}
        inputs = {q: self._inputs(q) for q in names}
        found = set()
        for p, q in pairs:
            linked = p in reads[q] or q in reads[p]
            if not linked and p in inputs[q]:
                found.add("through solutions")
            if not linked and p not in inputs[q] and q in felt[p]:
                found.add("apart")
        for p, q in itertools.permutations(names, 2):
            if level[p] == level[q] and p in inputs[q]:
                found.add("side by side")
        if any(not any(p in reads[q] for q in names) for p in names[1:]):
            found.add("refused")
        if sum(len(felt[p]) for p in names[1:]) > 5:
            found.add("too costly")
        if any(p in reads[q] and q in reads[p] for p, q in pairs if p != "a"):
            found.add("reads below")
        if any(q in reads[p] and p not in reads[q] for p, q in pairs if p != "a"):
            found.add("reads below")
        if not all(inputs[q] for q in names[1:]) or not any("a" in inputs[q] for q in felt["a"]):
            found.add("refused")
        return found

    def _felt(self, p: str) -> set[str]:
        found, before = set(self.reads[p]), None
        while found != before:
            before = set(found)
            for r in before:
                if self.level[r] > self.level[p]:
                    found |= self.reads[r]
        return {r for r in found if self.level[r] > self.level[p]}

    def _inputs(self, q: str) -> set[str]:
        """The problems above and beside `q` that its solution depends on."""
        found = set(self.reads[q])
        for r in self._felt(q):
            found |= self.reads[r]
        return {a for a in found if self.level[a] <= self.level[q]} - {q}

    def _method(self, q: str) -> str:
        names = ["dense", "minres", "minres" if len(set(self._signs[q])) > 1 else "cg"]
        for feature, more in _OF_FEATURE.items():
            if feature in self.has:
                names += more
        attached = any(q in self._felt(p) for p in self.reads if self.level[p])
        if attached:
            names = [n for n in names if n != "alternating"]
        # As often one of the exact inverses as one of all others.
        return self.random.choice(names[:3] if self._coin(0.5) or not names[3:] else names[3:])

    def _sizes(self) -> list[int]:
        return [self.random.randint(1, 2) for _ in range(self.random.randint(1, 2))]

    def _node(self, p: str, sizes: Mapping[str, Sequence[int]]) -> Node:
        has, level = self.has, self.level[p]
        optimizer = self.random.choice(["sgd", "adam", "adamw"]) if "adam" in has else "sgd"
        signs = self._signs[p]
        options = [self._options(optimizer)] * len(sizes[p])
        if "groups" in has:
            options = [self._options(optimizer) for _ in sizes[p]]
        options = [
            {**o, **({"maximize": True} if s < 0 else {})}
            for o, s in zip(options, signs, strict=True)
        ]
        limit = self.random.choice([0.6, 0.8, 1.0])
        loss, width = self._loss(p, sizes, signs)
        return Node(
            name=p,
            level=level,
            reads=frozenset(self.reads[p]),
            loss=loss,
            start=tuple(self._normal(n) for n in sizes[p]),
            batches=self._batches(width),
            how=METHODS[self.methods[p]][1],
            optimizer=optimizer,
            options=tuple(options),
            steps=self.random.randint(1, 3) if "steps" in has and level else 1,
            accumulate=self.random.randint(1, 3) if "accumulation" in has else 1,
            pace=(lambda k: limit**k) if "schedulers" in has else (lambda _: 1.0),
            through_response=not ("fixed below" in has and level and self._coin(0.3)),
        )

    def _draw_signs(self, n: int) -> list[float]:
        if "mixed maximize" in self.has and self._coin(0.5):
            return [self.random.choice([1.0, -1.0]) for _ in range(n)]
        if "maximize" in self.has and self._coin(0.3):
            return [-1.0] * n
        return [1.0] * n

    def _options(self, optimizer: str) -> dict[str, Any]:
        draw = self.random
        options: dict[str, Any] = {"lr": draw.uniform(0.03, 0.15)}
        if "decay" in self.has:
            options["weight_decay"] = draw.choice([0.0, 0.3])
        if optimizer == "sgd" and "momentum" in self.has:
            kind = draw.choice(["plain", "momentum", "nesterov", "dampening"])
            if kind != "plain":
                options["momentum"] = 0.6
            if kind == "nesterov":
                options["nesterov"] = True
            if kind == "dampening":
                options["dampening"] = 0.3
        if optimizer != "sgd":
            options["betas"] = (0.7, 0.9)
        return options

    def _loss(
        self, p: str, sizes: Mapping[str, Sequence[int]], signs: Sequence[float]
    ) -> tuple[Callable[..., Tensor], int]:
        """A smooth loss of `p`, convex in the problem's own parameters (concave where they are
        maximised), and the width of the rows that it reads from a batch.
        """
        names = [p, *sorted(self.reads[p])]
        own, width = sum(sizes[p]), sum(sum(sizes[k]) for k in names)
        sign = torch.cat([torch.full((n,), s) for n, s in zip(sizes[p], signs, strict=True)])
        a = 0.3 * self._normal(own, own)
        alike = sign[:, None] == sign[None, :]
        square = torch.zeros(width, width).double()
        square[:own, :own] = 0.5 * sign[:, None] * alike * (a @ a.T + 3.0 * torch.eye(own))
        square[:own, own:] = 0.6 * self._normal(own, width - own)
        wave, mixed = torch.zeros_like(square), self._normal(width)
        wave[:own, own:] = 0.6 * square[:own, own:]
        start = own
        for k in names[1:]:
            end = start + sum(sizes[k])
            if self.level[k] > self.level[p]:
                square[start:end, start:end] = 0.3 * torch.eye(end - start)
            start = end
        blind = self.level[p] == 0 and "alternating" not in self.has and self._coin(0.3)

        def loss(values: Mapping[str, tuple[Tensor, ...]], batch: Tensor) -> Tensor:
            v = torch.cat([t.detach() if blind and k == p else t for k in names for t in values[k]])
            value = v @ square @ v + mixed @ v + v.sin() @ wave @ v.cos()
            return value + (batch @ v).sin().mean()

        return loss, width

    def _batches(self, width: int) -> list[Tensor]:
        """Rows of about unit length."""
        count = self.random.randint(1, 4)
        rows = [self.random.randint(1, 4) if "sizes" in self.has else 3 for _ in range(count)]
        return [self._normal(n, width) / width**0.5 for n in rows]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def _coin(self, chance: float) -> bool:
        return self.random.random() < chance

    def __str__(self) -> str:
        lines = []
        for n in self.nodes:
            others = {
                k: v
                for k, v in vars(n).items()
                if k in ("optimizer", "options", "steps", "accumulate", "through_response")
            }
            lines.append(
                f"{'  ' * n.level}{n.name}: reads {sorted(n.reads)}, "
                f"{self.methods[n.name]}, {others}"
            )
        return "\n".join(lines)


def _observe(problem: blo.Problem, updates: list[Update]) -> None:
    """Write every update of `problem` to the list: the gradient its optimizer gets, the result."""
    gradients: list[tuple[Tensor, ...]] = []

    def before(*_: Any) -> None:
        gradients.append(
            tuple(
                torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
                for p in problem.parameters
            )
        )

    def after(*_: Any) -> None:
        own = tuple(p.detach().clone() for p in problem.parameters)
        updates.append(Update(problem.name, gradients.pop(), own))

    problem.optimizer.register_step_pre_hook(before)
    problem.optimizer.register_step_post_hook(after)


def difference(got: Sequence[Update], expected: Sequence[Update]) -> tuple[float, str]:
    """The largest relative error of a gradient or a parameter, and where it is.

    Infinite where the updates are others, or in another order.
    """
    order = [u.name for u in expected]
    if [u.name for u in got] != order:
        return float("inf"), f"order {''.join(u.name for u in got)}, not {''.join(order)}"
    worst, place = 0.0, "nowhere"
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        for what in ("gradient", "parameters"):
            a, b = (torch.cat([t.reshape(-1) for t in getattr(u, what)]) for u in (g, e))
            error = float((a - b).norm() / b.norm().clamp_min(1e-2))
            if not error <= worst:
                worst, place = error, f"{what} of {g.name} in update {i + 1}: {a} not {b}"
    return worst, place


def compared(graph: Graph, num_rounds: int = 2, **replaced: Any) -> tuple[float, str]:
    """The largest difference of engine and simulator over some rounds, and where it is."""
    expected = list(graph.simulator().run(num_rounds))
    engine, got = graph.engine(**replaced)
    engine.run(num_rounds)
    return difference(got, expected)


def main() -> None:
    """List the seeds on which engine and simulator differ."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--features", nargs="*", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--without", nargs="*", choices=FEATURES, default=[])
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 50))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the graphs that differ")
    options = parser.parse_args()
    torch.set_num_threads(1)
    features = set(options.features) - set(options.without)
    failed = 0
    for seed in range(*options.seeds):
        graph = Graph(seed, features)
        try:
            error, where = compared(graph, options.rounds)
        except Exception as exception:
            error, where = float("inf"), f"{type(exception).__name__}: {exception}"
        if error <= graph.tolerance:
            continue
        failed += 1
        sys.stdout.write(f"seed {seed}: {error:.1e}, {where[:300]}\n")
        if options.show:
            sys.stdout.write(f"{graph}\n")
    sys.stdout.write(f"{failed} of {options.seeds[1] - options.seeds[0]} differ\n")


if __name__ == "__main__":
    main()
