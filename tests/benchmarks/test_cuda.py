"""The CUDA benchmarks: their comparisons as tests where there is a device, their machinery on the
CPU.
"""

import json
import time

import pytest
import torch

from benchmarks.cuda import behaviour, by_hand, methods, rows, speed
from benchmarks.cuda.__main__ import FAILED, NOT_RUN, main, status
from benchmarks.cuda.page import write_page
from benchmarks.cuda.rows import Absent, Disagreement, Row, Setting, not_run, read, run_rows

CUDA = Setting(torch.device("cuda"))


@pytest.mark.cuda
@pytest.mark.parametrize("base,method,adapter,precision", list(methods.cases(CUDA)))
def test_hypergradients_are_those_of_the_cpu(base, method, adapter, precision):
    methods.compared(base, method, adapter, precision, CUDA.device)


@pytest.mark.cuda
@pytest.mark.parametrize("row", list(behaviour.rows(CUDA)), ids=lambda row: row.name)
def test_the_device_behaves_as_the_cpu(row):
    row.run()


def test_the_smallest_dry_run_writes_every_part(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    arguments = ["--dry", "--smallest", "--together", "--out", str(tmp_path)]
    assert main(arguments) == 0, capsys.readouterr().out
    assert torch.get_num_threads() == threads
    for part in (1, 2, 3, 4):
        plan, *found = read(tmp_path / "cpu" / f"part{part}.jsonl")
        assert plan["plan"] == [line["row"] for line in found]
    page = (tmp_path / "cpu" / "page.md").read_text(encoding="utf-8")
    for words in ("a dry run", torch.__version__, "## 4. Speed and memory", "darts, one-sided"):
        assert words in page


def raises(error):
    def run():
        raise error

    return run


def test_a_row_that_fails_is_a_row_and_the_next_one_runs(tmp_path):
    file = tmp_path / "part2.jsonl"
    wanted = {
        "good": (lambda: {"difference": 0.5}, "ok"),
        "wrong": (raises(Disagreement("2 is above 1", difference=2.0)), "failed"),
        "broken": (raises(RuntimeError("no kernel")), "error"),
        "missing": (raises(Absent("not here")), "absent"),
        "last": (lambda: {}, "ok"),
    }
    planned = [Row(name, run) for name, (run, _) in wanted.items()]
    run_rows(planned, file, 2, until=time.monotonic() + 60)
    found = {line["row"]: line for line in read(file)[1:]}
    assert {name: line["status"] for name, line in found.items()} == {
        name: ending for name, (_, ending) in wanted.items()
    }
    assert found["wrong"]["difference"] == 2.0
    assert "RuntimeError (test_cuda.py" in found["broken"]["error"]
    assert status(tmp_path, [2]) == FAILED
    assert "no kernel" in write_page(tmp_path).read_text(encoding="utf-8")


def test_rows_are_on_disk_before_the_next_one_begins(tmp_path):
    file = tmp_path / "part1.jsonl"

    def look():
        return {"seen": [line.get("row") for line in read(file)[1:]]}

    run_rows([Row("first", dict), Row("second", look)], file, 1, until=time.monotonic() + 60)
    assert read(file)[-1]["seen"] == ["first"]


def test_rows_beyond_the_time_are_reported_as_not_run(tmp_path):
    file = tmp_path / "part3.jsonl"
    run_rows([Row("late", dict)], file, 3, until=time.monotonic() - 1)
    not_run(file, 3, "no time")
    assert [line["status"] for line in read(file)[1:]] == ["not run"]
    assert status(tmp_path, [3]) == NOT_RUN


def test_a_line_that_was_cut_off_does_not_hide_the_others(tmp_path):
    file = tmp_path / "part1.jsonl"
    run_rows([Row("whole", dict), Row("cut", dict)], file, 1, until=time.monotonic() + 60)
    file.write_text(file.read_text()[:-20])
    assert [line.get("row") for line in read(file)[1:]] == ["whole"]
    not_run(file, 1, "stopped")
    assert [line["status"] for line in read(file)[1:]] == ["ok", "not run"]


def test_a_part_that_never_began_is_an_error(tmp_path):
    not_run(tmp_path / "part4.jsonl", 4, "the process ended with status 1")
    assert status(tmp_path, [4]) == FAILED


def test_a_device_with_other_numbers_fails(monkeypatch):
    here = methods.received
    monkeypatch.setattr(methods, "received", lambda *a: 1.001 * here(*a))
    methods.on_cpu.cache_clear()
    fine = methods.on_cpu("t1t2", "BiLoRA", "perceptron", torch.float32, None) / 1.001
    monkeypatch.setattr(methods, "on_cpu", lambda *a, **k: fine)
    with pytest.raises(Disagreement, match="above"):
        methods.compared("perceptron", "t1t2", "BiLoRA", "float32", torch.device("cpu"))


@pytest.mark.parametrize("method", list(by_hand.ROUNDS))
def test_loops_by_hand_compute_what_the_engine_computes(method):
    torch.use_deterministic_algorithms(False)
    found = speed.twin(torch.device("cpu"), method)
    assert found["difference"] <= 1e-4


def test_numbers_that_json_cannot_say_become_text(tmp_path):
    rows.append(tmp_path / "x.jsonl", {"row": "a", "status": "ok", "value": float("nan")})
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {
        "row": "a", "status": "ok", "value": "nan",
    }  # fmt: skip
