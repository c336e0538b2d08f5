"""Part 1: every method with every adapter, in float32 and under bfloat16 autocast, on the device
and on the CPU, and the tests marked ``cuda``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cuda.rows import Absent, Disagreement, Row, Setting, Values
from benchmarks.cuda.tiny import ADAPTERS, METHODS, RANDOM, Run, difference, received

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
ON_BERT = ("darts", "darts, one-sided", "t1t2", "sama", "cg", "neumann", "unrolled", "alternating")
SMALL = ("BiLoRA", "BiDoRA")

# (exact products, differences) of the device's numbers from the CPU's, relative, in float32. The
# order of summation alone moves exact products by up to 2e-5 here; TensorFloat-32 would by 1e-3.
LIMITS = (2e-4, 3e-3)
# Under bfloat16, what is allowed beside ten times the movement on the CPU when the frozen weights
# are moved by one rounding: some of these numbers (differences, CG) have no more digits than that.
BF16_LIMITS = (3e-2, 2e-1)


def rows(setting: Setting) -> Iterator[Row]:
    """Yield the rows of part 1, the most important first."""
    for base, method, adapter, precision in cases(setting):
        name = f"{method} | {adapter} | {precision}" + (" | BERT" if base == "bert" else "")
        yield Row(name, partial(compared, base, method, adapter, precision, setting.device))
    if not setting.smallest:
        yield Row("pytest -m cuda", partial(marked_tests, setting))


def cases(setting: Setting) -> Iterator[tuple[str, str, str, str]]:
    """Yield base model, method, adapter and precision of each comparison."""
    if setting.smallest:
        yield from (("perceptron", m, "BiLoRA", p) for m in ("darts", "cg") for p in PRECISIONS)
        return
    for adapter in SMALL:
        some = ON_BERT if setting.dry and adapter != SMALL[0] else METHODS
        yield from (("perceptron", m, adapter, p) for m in some for p in PRECISIONS)
    for adapter in SMALL[: 1 if setting.dry else None]:
        some = ON_BERT[:5:2] if setting.dry else ON_BERT
        yield from (("bert", m, adapter, p) for m in some for p in PRECISIONS)
    for adapter in ADAPTERS:
        if adapter not in SMALL:
            some = ON_BERT[:1] if setting.dry else METHODS
            yield from (("perceptron", m, adapter, p) for m in some for p in PRECISIONS)


def compared(base: str, method: str, adapter: str, precision: str, device: torch.device) -> Values:
    """Return the distance of the device's hypergradients from the CPU's, and from float64's.

    Raises:
        Disagreement: where the distance is above its limit, or one device refuses what the other
            computes.
    """
    run = Run(device=device, base=base, precision=PRECISIONS[precision])
    use, part = METHODS[method], int(METHODS[method].difference)
    if adapter in RANDOM:
        # Each device has masks of its own: what can be asked is that a seed gives them again.
        first, second = (received(use, adapter, run) for _ in range(2))
        limit = (LIMITS if run.precision is None else BF16_LIMITS)[part]
        return within(difference(second, first), limit, compared_with="itself, the same seed")
    try:
        reference = on_cpu(method, adapter, base, torch.float64, None)
        there = on_cpu(method, adapter, base, torch.float32, run.precision)
    except (RuntimeError, TypeError, ValueError) as error:
        return refused(error, method, adapter, run)
    here = received(use, adapter, run)
    limit, movement = LIMITS[part], None
    if run.precision is not None:
        moved = on_cpu(method, adapter, base, torch.float32, run.precision, moved=2.0**-9)
        movement = difference(moved, there)
        limit = min(BF16_LIMITS[part] + 10 * movement, 1.0)
    return within(
        difference(here, there),
        limit,
        error=difference(here, reference),
        error_on_cpu=difference(there, reference),
        movement=movement,
    )


@cache
def on_cpu(
    method: str,
    adapter: str,
    base: str,
    dtype: torch.dtype,
    precision: torch.dtype | None,
    moved: float = 0.0,
) -> Tensor:
    """Return the hypergradients on the CPU."""
    run = Run(dtype=dtype, precision=precision, base=base, moved=moved)
    return received(METHODS[method], adapter, run)


def within(distance: float, limit: float, **values: object) -> Values:
    """Return the distance with other values.

    Raises:
        Disagreement: the distance is above the limit or not a number.
    """
    found = {"difference": distance, "limit": limit, **values}
    if not distance <= limit:
        raise Disagreement(f"the difference {distance:.2g} is above {limit:.2g}", **found)
    return found


def refused(error: Exception, method: str, adapter: str, run: Run) -> Values:
    """Return the CPU's error if the device gives the same.

    Raises:
        Disagreement: the device computes, or gives another error.
    """
    text = f"{type(error).__name__}: {error}"
    try:
        received(METHODS[method], adapter, run)
    except (RuntimeError, TypeError, ValueError) as same:
        if type(same) is type(error):
            return {"refused": text[:300]}
        raise Disagreement(f"the CPU refuses with {text[:200]}, the device otherwise") from same
    raise Disagreement(f"the device computes what the CPU refuses with {text[:200]}")


def marked_tests(setting: Setting) -> Values:
    """Run the tests marked ``cuda`` that are not these rows, in a process of their own; in a dry
    run, some of their twins on the CPU.

    Raises:
        Absent: pytest or what the tests import is not installed.
        Disagreement: a test failed.
    """
    missing = [
        m for m in ("pytest", "hypothesis", "sklearn") if importlib.util.find_spec(m) is None
    ]
    if missing:
        raise Absent(f"not installed: {', '.join(missing)}")
    folder = ROOT / "tests"
    # The applications' tests need data sets too.
    whole = importlib.util.find_spec("datasets") is not None
    wanted = "test_devices.py" if setting.dry else "test_*.py"
    files = sorted(
        str(path.relative_to(ROOT))
        for path in folder.rglob(wanted)
        if path.name != "test_cuda.py"
        and (whole or "applications" not in path.parts)
        and any(word in path.read_text(encoding="utf-8") for word in ("mark.cuda", "(device"))
    )
    if not files:
        raise Absent(f"no tests marked cuda below {folder}")
    with tempfile.TemporaryDirectory() as place:
        marker = "not cuda" if setting.dry else "cuda"
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-p", "no:cacheprovider"]
        command += ["-p", "no:xdist", f"--junitxml={report}", *files]
        result = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
        if not report.is_file():
            tail = (result.stdout + result.stderr)[-300:]
            raise Disagreement(f"pytest stopped with {result.returncode}: {tail}")
        root = ET.parse(report).getroot()
        counts = {
            name: sum(int(suite.get(name, 0)) for suite in root.iter("testsuite"))
            for name in ("tests", "failures", "errors", "skipped")
        }
        failed = [
            f"{case.get('classname')}.{case.get('name')}"
            for case in root.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ]
    if failed:
        raise Disagreement(f"{len(failed)} tests failed", failed_tests=failed, **counts)
    if counts["skipped"] == counts["tests"]:
        raise Disagreement("every test was skipped", **counts)
    return {**counts, "left_out": None if whole else "tests/applications (no datasets)"}
