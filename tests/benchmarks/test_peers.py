"""The comparison with other libraries: what its references, its errors and its page say."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import scaling
from benchmarks.peers import by_hand, ours, page, tasks, with_jaxopt
from benchmarks.peers.__main__ import lines
from benchmarks.peers.library import LIBRARIES, Claim, Entry, Library, register
from benchmarks.peers.measuring import error, received
from benchmarks.peers.reference import claimed
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
    pytest.importorskip("jaxopt")
    build = partial(problem, size=6, steps=3)
    task = build(DOUBLE)
    value = received(task, with_jaxopt.JAXOPT.round_of(method, task))
    assert error(value, claimed(build(DOUBLE), claim)) < 1e-8


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
    levels = [{"kind": "levels", **line} for line in scaling.by_levels(1, 1e-3, 2)]
    sizes = [{"kind": "size", **line} for line in found]
    text = "".join(json.dumps(line) + "\n" for line in levels + sizes)
    (tmp_path / "scaling.jsonl").write_text(text)
    out = tmp_path / "peers.html"
    monkeypatch.setattr("sys.argv", ["page", "--folder", str(tmp_path), "--out", str(out)])
    assert page.main() == 0
    written = out.read_text(encoding="utf-8")
    for words in ("ridge", "failed: ZeroDivisionError", "Time against levels", "<svg"):
        assert words in written
    errors = {(line["method"], line["problem"]): line["error"] for line in levels}
    assert errors["cg(3)", "chain"] < 1e-12
    assert errors["t1t2", "chain"] > 1e-3


def test_a_library_of_ones_own_enters_as_the_documentation_says():
    text = Path("docs/benchmarks.md").read_text(encoding="utf-8")
    code, _ = (block.split("```")[0] for block in text.split("```python\n")[1:])
    exec(compile(code, "docs/benchmarks.md", "exec"), {})
    mine = LIBRARIES.pop("mine")
    (line,) = lines(Row("darts", RIDGE, ONE_STEP), [mine], repeats=1, seconds=1e-3)
    assert line["error"] < 1e-5
    assert line["claim"] == "identity"
