"""Running a grid: resuming, locks, failures, results; with a stand-in for the application."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from applications.compare import main
from applications.comparison import attempt as attempts
from applications.comparison import backends
from applications.comparison.attempt import Ended, attempt
from applications.comparison.backends import Processes, Work, outcomes
from applications.comparison.folder import RunPlace, place_of
from applications.comparison.grid import Run, made_grid, planned
from applications.comparison.results import collected, write_results
from tests.applications import stand_in
from tests.applications.synthetic_grids import put_run

STAND_IN = [sys.executable, "-S", "-m", "tests.applications.stand_in"]
Compare = Callable[..., int]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "program", lambda command: STAND_IN)
    monkeypatch.setattr(attempts, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(backends, "HELD_SECONDS", 0.05)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def compare(out: Path) -> Compare:
    def run(*flags: str, methods: str = "lora,bilora", seeds: str = "2", folder: Path = out) -> int:
        axes = ["--tasks", "sst2", "--methods", methods, "--seeds", seeds]
        return main([*axes, "--out", str(folder), *flags])

    return run


def one_run(**options: Any) -> Run:
    (run,) = planned(
        made_grid({"tasks": ["sst2"], "methods": ["lora"], "common": options}, "the grid")
    )
    return run


def starts(out: Path) -> dict[str, int]:
    """How often each run's application was started."""
    found = {}
    for path in sorted((out / "runs").rglob("starts.txt")):
        found[str(path.parent.relative_to(out / "runs"))] = len(path.read_text().splitlines())
    return found


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def waited_for(path: Path, seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < limit, path
        time.sleep(0.01)


def test_results_hold_a_line_a_run_in_a_fixed_order_with_its_labels(
    compare: Compare, out: Path
) -> None:
    assert compare("--train_sizes", "1000,300", "--processes", "4") == 0
    found = lines(out)
    assert [(one["train_size_label"], one["variant"], one["seed"]) for one in found] == [
        (size, variant, seed)
        for size in ("300", "1000")
        for variant in ("bilora", "lora")
        for seed in (0, 1)
    ]
    assert {one["task_label"] for one in found} == {"sst2"}
    folder = out / "runs" / "sst2" / "300" / "bilora" / "seed0"
    labels = {"variant": "bilora", "task_label": "sst2", "train_size_label": "300"}
    assert found[0] == json.loads((folder / "summary.json").read_text()) | labels


def test_finished_runs_are_not_run_again(compare: Compare, out: Path) -> None:
    compare(seeds="1")
    first = lines(out)
    assert compare(seeds="1") == 0
    assert lines(out) == first
    assert compare(seeds="2") == 0
    assert starts(out) == {
        f"sst2/all/{method}/seed{seed}": 1 for method in ("bilora", "lora") for seed in (0, 1)
    }
    assert [one for one in lines(out) if one["seed"] == 0] == first
    assert len(lines(out)) == 4


def test_every_run_is_resumed_with_the_asked_threads(compare: Compare, out: Path) -> None:
    compare("--threads", "3", methods="lora", seeds="1")
    text = (out / "runs/sst2/all/lora/seed0/starts.txt").read_text()
    assert text == "--resume threads=3\n"


def test_a_summary_that_is_cut_off_counts_as_none(compare: Compare, out: Path) -> None:
    compare(methods="lora", seeds="1")
    path = out / "runs/sst2/all/lora/seed0/summary.json"
    whole = path.read_text()
    for rest in ("", whole[:40], '{"method": "lora"}'):
        path.write_text(rest)
        assert collected(out) == []
        assert compare(methods="lora", seeds="1") == 0
        assert len(lines(out)) == 1
    assert set(starts(out).values()) == {4}


def test_other_options_are_refused_before_anything_runs(
    compare: Compare, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare("--learning_rate", "1e-3", seeds="1")
    before = (out / "results.jsonl").read_bytes()
    assert compare("--learning_rate", "1e-2") == 2
    said = capsys.readouterr().err
    assert "learning_rate=0.001, now 0.01" in said
    assert "another --out, or --overwrite" in said
    assert (out / "results.jsonl").read_bytes() == before
    assert len(starts(out)) == 2


def test_overwriting_removes_the_results_of_other_options_and_keeps_the_rest(
    compare: Compare, out: Path
) -> None:
    compare("--learning_rate", "1e-3", methods="lora", seeds="1")
    compare("--learning_rate", "1e-2", methods="bilora", seeds="1")
    stale = out / "runs/sst2/all/lora/seed0/checkpoints/stale"
    stale.touch()
    assert compare("--learning_rate", "1e-2", "--overwrite", seeds="1") == 0
    assert starts(out) == {"sst2/all/bilora/seed0": 1, "sst2/all/lora/seed0": 2}
    assert not stale.exists()
    assert len(lines(out)) == 2


def test_options_that_change_no_number_may_differ(compare: Compare, out: Path) -> None:
    compare(seeds="1")
    assert compare("--save_steps", "7", "--device", "cpu", seeds="1") == 0
    assert set(starts(out).values()) == {1}


def test_data_that_changed_are_refused_before_anything_runs_and_overwriting_takes_them(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run is no result on the changed data, either."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.csv", "test.csv"):
        (data / name).write_text("text,label\na,b\n")
    grid = tmp_path / "grid.json"
    tasks = {
        "files": {"task_name": None, "train_file": str(data / "train.csv")},
        "folder": {"task_name": None, "data_dir": str(data)},
        "carried": {"task_name": "bbc_headlines"},
    }
    grid.write_text(json.dumps({"tasks": tasks, "methods": ["lora"]}))
    words = [str(grid), "--out", str(out)]
    assert main(words) == main(words) == 0
    before = starts(out)
    (data / "test.csv").write_text("text,label\na,c\n")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "folder/all/lora/seed0 holds results of other options or data" in said
    assert "(the files of the data were others), and so do 0 more" in said
    assert "another --out, or --overwrite" in said
    assert main([*words, "--overwrite"]) == main(words) == 0
    assert starts(out) == {**before, "folder/all/lora/seed0": 2}
    place = place_of(out, one_run())
    assert place.changes(one_run()) == []  # where nothing has begun


def test_an_option_that_the_record_does_not_know_counts_as_its_default(out: Path) -> None:
    run = one_run()
    attempt(run, out, threads=1)
    place = place_of(out, run)
    record = place.record() or {}
    del record["resolved"]["lora_alpha"]
    (place.path / "run.json").write_text(json.dumps(record))
    assert place.finished(run)
    assert place.changes(one_run(lora_alpha=3)) == ["lora_alpha=None, now 3.0"]
    assert not place.finished(one_run(lora_alpha=3))


def test_results_without_a_record_are_not_taken_for_those_of_the_grid(
    compare: Compare, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put_run(out, size="all")
    (folder / "run.json").unlink()
    assert compare(methods="lora", seeds="1") == 2
    assert "run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rate, reason",
    [
        (stand_in.FAILS, "ended with status 1: FloatingPointError: the loss is not finite"),
        (stand_in.IS_KILLED, "killed by SIGKILL, perhaps for want of memory"),
        (stand_in.LEAVES_NOTHING, "ended without a whole summary.json"),
    ],
)
def test_a_failure_is_recorded_and_the_others_go_on(
    rate: float, reason: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.json"
    bad: dict[str, Any] = {"lora": {"learning_rate": rate}, "dora": {}, "bilora": {}}
    grid.write_text(json.dumps({"tasks": ["sst2"], "methods": bad}))
    assert main([str(grid), "--out", str(out), "--processes", "1"]) == 1
    assert f"runs/sst2/all/lora/seed0: {reason}" in capsys.readouterr().out
    assert [one["variant"] for one in lines(out)] == ["bilora", "dora"]
    failure = json.loads((out / "runs/sst2/all/lora/seed0/failure.json").read_text())
    assert failure["reason"] == reason
    if rate == stand_in.FAILS:
        assert failure["status"] == 1
        assert failure["log"][-1] == "FloatingPointError: the loss is not finite"
    (table,) = [one["failures"] for one in [json.loads((out / "summary.json").read_text())]]
    assert [one["variant"] for one in table] == ["lora"]
    assert reason in (out / "report.html").read_text()


def test_a_failed_run_is_tried_again_and_its_failure_forgotten(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = one_run()
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "program", lambda command: [sys.executable, "-S", "-c", "1/0"])
        failed = attempt(run, out, threads=1)
    place = place_of(out, run)
    assert failed.ended is Ended.FAILED
    assert (place.failure() or {})["log"][-1] == "ZeroDivisionError: division by zero"
    assert attempt(run, out, threads=1).ended is Ended.FINISHED
    assert place.failure() is None


def test_a_run_that_another_process_holds_is_left_alone(out: Path) -> None:
    run = one_run()
    with place_of(out, run).lock() as lock:
        assert lock is not None
        assert attempt(run, out, threads=1).ended is Ended.HELD
    assert starts(out) == {}
    assert attempt(run, out, threads=1).ended is Ended.FINISHED
    assert attempt(run, out, threads=1).ended is Ended.FOUND


def test_a_lock_lives_as_long_as_the_process_of_the_run_and_dies_with_it(out: Path) -> None:
    run = one_run()
    place = place_of(out, run)
    with place.lock() as lock:
        assert lock is not None
        # What a killed starter leaves behind: the run's process, which inherited the lock.
        orphan = subprocess.Popen(
            [sys.executable, "-S", "-c", "import time; time.sleep(60)"], pass_fds=(lock,)
        )
    try:
        assert attempt(run, out, threads=1).ended is Ended.HELD
    finally:
        orphan.kill()
        orphan.wait()
    assert attempt(run, out, threads=1).ended is Ended.FINISHED


def test_the_process_of_a_run_inherits_its_lock(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = (
        "import os, pathlib, sys\n"
        "lock = os.stat(pathlib.Path(sys.argv[1]).with_name('lock'))\n"
        "for descriptor in range(3, 256):\n"
        "    try: inherited = os.path.samestat(os.fstat(descriptor), lock)\n"
        "    except OSError: continue\n"
        "    if inherited: sys.exit(7)\n"
    )
    monkeypatch.setattr(attempts, "program", lambda command: [sys.executable, "-S", "-c", look])
    assert attempt(one_run(), out, threads=1).reason == "ended with status 7"


def test_a_run_held_by_a_process_that_dies_is_taken_over(out: Path) -> None:
    run = one_run()
    with place_of(out, run).lock() as lock:
        assert lock is not None
        orphan = subprocess.Popen(
            [sys.executable, "-S", "-c", "import time; time.sleep(60)"], pass_fds=(lock,)
        )
    waits: list[int] = []

    def told(number: int) -> None:
        waits.append(number)
        orphan.kill()
        orphan.wait()

    ended = [o.ended for o in outcomes([run], Processes(Work(out), 1), at_once=1, on_wait=told)]
    assert ended == [Ended.FINISHED]
    assert waits == [1]


def test_two_invocations_share_the_runs_and_start_each_once(out: Path) -> None:
    grid = {"tasks": ["sst2"], "methods": ["lora", "bilora"], "seeds": 4}
    common = {"learning_rate": stand_in.TAKES_LONG, "max_steps": 3}
    runs = planned(made_grid(grid | {"common": common}, "the grid"))
    ended: dict[int, list[Ended]] = {}

    def invoke(number: int) -> None:
        pool = Processes(Work(out), 2)
        ended[number] = [outcome.ended for outcome in outcomes(runs, pool, at_once=2)]

    both = [threading.Thread(target=invoke, args=(number,)) for number in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert set(starts(out).values()) == {1}
    assert len(write_results(out)) == len(runs) == 8
    finished = {number: found.count(Ended.FINISHED) for number, found in ended.items()}
    assert sum(finished.values()) == 8
    assert all(finished.values())
    assert all(len(found) == 8 for found in ended.values())


def test_stopping_ends_the_processes_and_the_run_goes_on_from_its_state(out: Path) -> None:
    run = one_run(learning_rate=stand_in.TAKES_LONG, max_steps=100)
    stop = threading.Event()
    found = []
    thread = threading.Thread(
        target=lambda: found.append(attempt(run, out, threads=1, stop=stop)),
    )
    thread.start()
    place = place_of(out, run)
    waited_for(place.path / "checkpoints" / "state")
    time.sleep(0.2)
    stop.set()
    thread.join()
    assert found[0].ended is Ended.INTERRUPTED
    assert place.summary() is None
    assert place.failure() is None
    with place.lock() as lock:
        assert lock is not None
    assert attempt(run, out, threads=1).ended is Ended.FINISHED
    # The stand-in reports the step from which it went on.
    assert 0 < (place.summary() or {})["num_lower_steps"] < 100


def test_a_process_that_ignores_the_first_signals_is_killed(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "GRACE_SECONDS", 0.1)
    deaf = (
        "import pathlib, signal, sys, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1]).with_name('deaf').touch()\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(attempts, "program", lambda command: [sys.executable, "-S", "-c", deaf])
    run, stop = one_run(), threading.Event()
    found = []
    thread = threading.Thread(
        target=lambda: found.append(attempt(run, out, threads=1, stop=stop)),
    )
    thread.start()
    waited_for(place_of(out, run).path / "deaf")
    stop.set()
    thread.join(timeout=20)
    assert found[0].ended is Ended.INTERRUPTED


def test_an_interrupted_invocation_ends_its_runs_and_says_how_to_go_on(
    compare: Compare, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = out / "runs/sst2/all/lora/seed0/checkpoints/state"

    def interrupt() -> None:
        waited_for(state)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    slow = ["--learning_rate", str(stand_in.TAKES_LONG), "--max_steps", "100"]
    assert compare(*slow, methods="lora", seeds="1") == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    reached = int(state.read_text())
    time.sleep(0.2)
    assert int(state.read_text()) == reached < 100


def test_what_a_cut_write_left_behind_is_removed(out: Path) -> None:
    run = one_run()
    place = place_of(out, run)
    draft = place.path / ".summary.json-abc_1234"
    draft.mkdir(parents=True)
    (draft / "summary.json").write_text("{")
    assert attempt(run, out, threads=1).ended is Ended.FINISHED
    assert not draft.exists()


def test_a_folder_half_cleared_is_not_finished(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = one_run()
    attempt(run, out, threads=1)
    place = place_of(out, run)

    def cut(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            place.clear()
    assert place.summary() is None
    assert not place.finished(run)


def test_shards_copied_together_are_the_whole_grid(
    compare: Compare, out: Path, tmp_path: Path
) -> None:
    assert compare() == 0
    for number in (1, 2):
        assert compare("--shard", f"{number}/2", folder=tmp_path / f"part{number}") == 0
        whole = tmp_path / "whole"
        shutil.copytree(tmp_path / f"part{number}" / "runs", whole / "runs", dirs_exist_ok=True)
    assert len(lines(tmp_path / "part1")) == 2
    assert main(["--out", str(whole), "--report_only"]) == 0
    assert (whole / "results.jsonl").read_bytes() == (out / "results.jsonl").read_bytes()


def test_reporting_only_runs_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(out), "--report_only"]) == 2
    assert "no runs below" in capsys.readouterr().err
    put_run(out)
    put_run(out, seed=1, finished=False)
    assert main(["--out", str(out), "--report_only"]) == 0
    assert starts(out) == {}
    assert len(lines(out)) == 1


def test_each_of_the_runs_at_once_gets_a_device_of_its_own(out: Path) -> None:
    grid = {"tasks": ["sst2"], "methods": ["lora"], "seeds": 4}
    pool = Processes(Work(out, devices=("3", "5")), 2)
    devices = []
    start = pool.threads.submit

    def submit(*args: Any, **options: Any) -> Any:
        devices.append(options["devices"])
        return start(*args, **options)

    pool.threads.submit = submit  # type: ignore[method-assign]
    assert len(list(outcomes(planned(made_grid(grid, "the grid")), pool, at_once=2))) == 4
    assert set(devices) == {"3", "5"}
    assert attempts.environment(1, "3")["CUDA_VISIBLE_DEVICES"] == "3"


def test_invocations_are_remembered(compare: Compare, out: Path) -> None:
    compare("--learning_rate", "1e-3", seeds="1")
    (found,) = [json.loads(one) for one in (out / "invocations.jsonl").read_text().splitlines()]
    assert found["command"] == (
        f"python -m applications.compare --tasks sst2 --methods lora,bilora --seeds 1 "
        f"--out {out} --learning_rate 1e-3"
    )
    assert found["methods"] == ["lora", "bilora"]


def test_a_run_place_without_files_has_nothing_to_say(tmp_path: Path) -> None:
    place = RunPlace(tmp_path)
    assert (place.record(), place.summary(), place.failure()) == (None, None, None)
    assert place.changes(one_run()) == []
