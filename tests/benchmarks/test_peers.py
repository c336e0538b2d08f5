"""The comparison with other libraries: what its references, its errors and its page say."""

import json
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import scaling
from benchmarks.peers import __main__ as comparison
from benchmarks.peers import (
    by_hand,
    ours,
    page,
    tables,
    tasks,
    with_betty,
    with_higher,
    with_jaxopt,
)
from benchmarks.peers.__main__ import lines
from benchmarks.peers.chains import chain
from benchmarks.peers.library import LIBRARIES, Claim, Entry, Library, register
from benchmarks.peers.measuring import error, received
from benchmarks.peers.reference import claimed
from benchmarks.peers.results import Results, read
from benchmarks.peers.rows import ONE_STEP, STEPS, Row

RIDGE = partial(tasks.ridge, size=6)
DOUBLE = torch.float64


def distance(build, one, other):
    return error(claimed(build(DOUBLE), one), claimed(build(DOUBLE), other))


def test_the_references_meet_where_they_should():
    assert distance(RIDGE, Claim("krylov", 6), Claim("implicit")) < 1e-10
    assert distance(RIDGE, Claim("series", 400), Claim("implicit")) < 1e-8
    assert distance(RIDGE, ONE_STEP, STEPS) < 1e-12
    longer = partial(RIDGE, steps=60)
    assert 1e-6 < distance(longer, STEPS, Claim("implicit")) < 1e-1
    assert distance(longer, ONE_STEP, STEPS) > 0.1


SMALL = partial(tasks.reweighting, steps=3, width=4)
CASES = [
    ("cg(10)", RIDGE, Claim("implicit"), 1e-9),
    ("neumann(10)", RIDGE, Claim("series", 10), 1e-9),
    ("t1t2", RIDGE, ONE_STEP, 1e-9),
    ("darts", partial(RIDGE, steps=2), ONE_STEP, 1e-6),
    ("sama", partial(SMALL, optimizer="Adam"), ONE_STEP, 1e-3),
    ("unrolled", SMALL, STEPS, 1e-9),
    ("unrolled", partial(SMALL, optimizer="Adam"), STEPS, 1e-5),
    ("unrolled", partial(tasks.maml, width=4, steps=3), STEPS, 1e-9),
]


@pytest.mark.parametrize("library", [ours.OURS, by_hand.BY_HAND], ids=lambda li: li.name)
@pytest.mark.parametrize("method,build,claim,limit", CASES)
def test_rounds_compute_what_their_method_claims(library, method, build, claim, limit):
    task = build(DOUBLE)
    value = received(task, library.round_of(method, task))
    assert error(value, claimed(build(DOUBLE), claim)) < limit


@pytest.mark.parametrize("problem", [tasks.ridge, tasks.logistic])
@pytest.mark.parametrize(
    "method,claim", [("cg(10)", Claim("implicit")), ("unrolled", STEPS)], ids=str
)
def test_rounds_of_jaxopt_compute_what_they_claim(problem, method, claim):
    absent_without("jaxopt")
    build = partial(problem, size=6, steps=3)
    task = build(DOUBLE)
    value = received(task, with_jaxopt.JAXOPT.round_of(method, task))
    assert error(value, claimed(build(DOUBLE), claim)) < 1e-8


def test_the_reference_of_a_chain_is_the_derivative_of_its_solutions():
    made = chain(DOUBLE, levels=4, size=2)

    def reached(x):
        values = [x]
        for k in range(1, 4):
            h, b, c = made.curvatures[k], made.linear[k], made.couplings[k]
            values.append(-torch.linalg.solve(h, b + c @ values[-1]))
        return made.at(0, values)

    wanted = torch.autograd.functional.jacobian(reached, made.x[0].detach())
    assert error(claimed(made, Claim("implicit")), wanted) < 1e-12
    for k, y in enumerate(made.y):
        (slope,) = torch.autograd.grad(made.loss(k + 1), y)
        assert slope.norm() < 1e-12


CHAIN = [
    ("darts", ONE_STEP, 1e-6),
    ("t1t2", ONE_STEP, 1e-12),
    ("neumann(3)", Claim("series", 3), 1e-12),
    ("cg(3)", Claim("krylov", 3), 1e-10),
]


@pytest.mark.parametrize("library", [ours.OURS, by_hand.BY_HAND], ids=lambda li: li.name)
@pytest.mark.parametrize("method,claim,limit", CHAIN, ids=str)
@pytest.mark.parametrize("levels", [2, 4])
def test_rounds_of_a_chain_compute_what_they_claim(library, levels, method, claim, limit):
    build = partial(chain, levels=levels, size=5)
    made = build(DOUBLE)
    value = received(made, library.round_of(method, made))
    assert error(value, claimed(build(DOUBLE), claim)) < limit


def absent_without(module):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@pytest.mark.parametrize("levels", [2, 3, 5])
@pytest.mark.parametrize(
    "method,claim", [("darts", Claim("identity")), ("neumann(3)", Claim("series", 3))], ids=str
)
def test_bettys_paths_are_those_of_the_chain(levels, method, claim):
    absent_without("betty")
    build = partial(chain, levels=levels, size=5)
    made = build(DOUBLE)
    value = received(made, with_betty.BETTY.round_of(method, made))
    assert error(value, claimed(build(DOUBLE), claim)) < 1e-6


def test_highers_adam_is_compared_with_its_own_epsilon():
    build = partial(SMALL, optimizer="Adam")
    own = with_higher.claim(build(DOUBLE))
    assert distance(build, own, STEPS) > 1e-9
    assert with_higher.claim(SMALL(DOUBLE)) == STEPS
    absent_without("higher")
    task = build(DOUBLE)
    value = received(task, with_higher.HIGHER.round_of("unrolled", task))
    assert error(value, claimed(build(DOUBLE), own)) < 1e-9


def line_of(library, seconds, **ratios):
    key = {"kind": "size", "problem": "ridge", "setting": "small", "method": "cg(10)"}
    return {**key, "library": library, "seconds": seconds, "commit": "1", **ratios}


def test_lines_that_are_measured_again_take_the_place_of_the_old_ones(tmp_path):
    path = tmp_path / "found.jsonl"
    other = line_of("blo", 5.0) | {"setting": "large"}
    results = Results(path)
    results.put([line_of("blo", 1.0, to_by_hand=2.0), line_of("by hand", 2.0, to_blo=0.5)])
    results.put([other])
    again = Results(path)
    again.put([line_of("blo", 3.0)])
    assert read(path) == again.lines == [line_of("blo", 3.0), line_of("by hand", 2.0), other]
    assert again.has([line_of("blo", 9.0)])
    assert not again.has([line_of("blo", 9.0) | {"commit": "2"}])
    assert not again.has([line_of("Betty", 9.0)])
    assert Results(path, anew=True).lines == []


def test_a_part_is_measured_again_into_the_same_file(tmp_path, monkeypatch, capsys):
    out = tmp_path / "peers.jsonl"

    def run(*more):
        flags = ["--problems", "ridge", "--libraries", "by hand", "--settings", "50 unknowns"]
        words = ["peers", *flags, "--seconds", "0.001", "--repeats", "1", "--out", str(out), *more]
        monkeypatch.setattr("sys.argv", words)
        assert comparison.main() == 0
        return capsys.readouterr().out.splitlines(), read(out)

    _, first = run("--methods", "darts", "t1t2")
    assert [line["method"] for line in first] == ["darts", "t1t2"]
    _, again = run("--methods", "darts")
    assert again[1] == first[1]
    assert again[0]["seconds"] != first[0]["seconds"]
    said, _ = run("--methods", "darts", "cg(10)", "--resume")
    assert said[0] == "ridge, 50 unknowns, 100 rows, 1 x SGD: cg(10)"
    assert len(said) == 2
    assert run("--methods", "cg(20)", "--settings", "1000 unknowns")[0] == []


def test_the_tables_of_the_page_are_those_of_the_rows():
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(text, tables.made(tables.FOLDER)) == text


def measured(library, method="cg(10)", status="ok", **more):
    known = {"problem": "ridge", "setting": "small", "method": method, "status": status}
    found = {"error": 1e-7, "cpu_seconds": 2e-3, "peak_memory_mb": 0.5, "library": library}
    return known | found | more


def test_a_row_of_the_page_tells_ratios_and_who_is_wrong():
    rows = [
        measured("blo", to_by_hand=1.5, to_betty=2.0, to_jaxopt=9.0),
        measured("by hand"),
        measured("Betty", error=1.4),
        measured("higher", status="absent"),
        measured("BOAT", status="failed"),
        measured("TorchOpt"),
        measured("jaxopt", error=None),
        measured("by hand", "darts"),
    ]
    *_, only = tables.rounds(rows).splitlines()
    cells = [cell.strip() for cell in only.strip("|").split("|")]
    assert cells[:6] == ["ridge", "small", "`cg(10)`", "2", "1e-07", "0.5"]
    assert cells[6:] == ["1.50", "2.00 (error 1)", "fails", "", "", "9.00"]


def without_response(task):
    """Rounds that leave the response out: fast, and wrong."""
    optimizer = task.upper_optimizer()

    def once():
        for p in task.x:
            p.grad = torch.zeros_like(p)
        optimizer.step()

    return once


def missing():
    raise ImportError("no module named 'nowhere'")


def test_absent_and_wrong_libraries_are_reported_as_such():
    entries = {"cg(10)": Entry(without_response)}
    wrong = Library("wrong", "nowhere", lambda: None, entries)
    absent = Library("absent", "nowhere", missing, entries)
    other = Library("other", "nowhere", lambda: None, {})
    row = Row("cg(10)", RIDGE, Claim("implicit"))
    found = list(lines(row, [ours.OURS, wrong, absent, other], repeats=1, seconds=1e-3))
    assert [line["status"] for line in found] == ["ok", "ok", "absent", "absent"]
    assert found[0]["error"] < 1e-5
    assert found[1]["error"] == 1.0
    assert found[1]["seconds"] > 0
    assert {"to_wrong", "peak_memory_mb", "version", "setting"} <= set(found[0])
    assert found[2]["reason"] == "nowhere cannot be imported: no module named 'nowhere'"
    assert found[3]["reason"] == "other has no cg(10)"


def test_a_library_is_registered_once():
    with pytest.raises(ValueError, match="'blo' is registered already"):
        register(LIBRARIES["blo"])


def test_the_page_shows_what_was_measured(tmp_path, monkeypatch):
    row = Row("cg(10)", RIDGE, Claim("implicit"))
    failed = Library("broken", "nowhere", lambda: None, {"cg(10)": Entry(lambda _: 1 / 0)})
    found = list(lines(row, [ours.OURS, failed], repeats=1, seconds=1e-3))
    (tmp_path / "peers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    levels = list(scaling.reading_below(1, 1e-3, 2))
    row = next(row for row in scaling.by_levels(2) if row.method == "t1t2")
    levels += lines(row, [ours.OURS], repeats=1, seconds=1e-3)
    sizes = [{"kind": "size", **line} for line in found]
    text = "".join(json.dumps(line) + "\n" for line in levels + sizes)
    (tmp_path / "scaling.jsonl").write_text(text)
    out = tmp_path / "peers.html"
    monkeypatch.setattr("sys.argv", ["page", "--folder", str(tmp_path), "--out", str(out)])
    assert page.main() == 0
    written = out.read_text(encoding="utf-8")
    for words in ("ridge", "failed: ZeroDivisionError", "Time against levels", 'class="beside"'):
        assert words in written
    figures = re.findall(r"<svg.*?>", written, re.DOTALL)
    assert len(figures) == 6
    for figure in figures:  # on a telephone, 390 pixels less the margins
        assert "viewBox" in figure
        assert int(re.search(r"min-width: (\d+)px", figure)[1]) <= 358
    errors = {(line["method"], line["problem"]): line["error"] for line in levels}
    assert errors["cg(3)", "chain, middle reads below"] < 1e-12
    assert errors["t1t2", "chain, middle reads below"] > 1e-3
    assert errors["t1t2", "chain"] < 1e-5


def test_a_library_of_ones_own_enters_as_the_documentation_says():
    text = Path("docs/benchmarks.md").read_text(encoding="utf-8")
    code, _ = (block.split("```")[0] for block in text.split("```python\n")[1:])
    exec(compile(code, "docs/benchmarks.md", "exec"), {})
    mine = LIBRARIES.pop("mine")
    (line,) = lines(Row("darts", RIDGE, ONE_STEP), [mine], repeats=1, seconds=1e-3)
    assert line["error"] < 1e-5
    assert line["claim"] == "identity"
