"""A grid of the real application, killed with SIGKILL in the middle of a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from applications.compare import main
from tests.applications.tiny_runs import untimed


def lines(out: Path) -> list[dict[str, Any]]:
    return [untimed(json.loads(one)) for one in (out / "results.jsonl").read_text().splitlines()]


def scores(out: Path) -> list[dict[str, Any]]:
    (path,) = (out / "runs").rglob("metrics.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: v for name, v in line.items() if name != "seconds"} for line in found]


@pytest.mark.slow
def test_a_grid_killed_in_the_middle_ends_with_the_results_of_a_straight_one(
    tiny_model: str, tiny_data: Path, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.json"
    common = {
        "model": tiny_model,
        "device": "cpu",
        "lora_r": 2,
        "max_steps": 100,
        "save_steps": 4,
        "logging_steps": 50,
    }
    tasks = {"topics": {"task_name": None, "data_dir": str(tiny_data)}}
    grid.write_text(json.dumps({"common": common, "tasks": tasks, "methods": ["lora"]}))
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert main([str(grid), "--out", str(straight)]) == 0

    starter = subprocess.Popen(
        [sys.executable, "-m", "applications.compare", str(grid), "--out", str(cut)],
        stdout=subprocess.DEVNULL,
    )
    folder = cut / "runs" / "topics" / "all" / "lora" / "seed0"
    limit = time.monotonic() + 600  # two interpreters import torch first: slow on a busy machine
    try:
        while not list((folder / "checkpoints").glob("phase-*.pt")):
            assert starter.poll() is None, "the grid ended before it was killed"
            assert time.monotonic() < limit, "no checkpoint in ten minutes"
            time.sleep(0.01)
    finally:
        starter.kill()
        starter.wait()
        # The run itself outlives its starter, and keeps the lock, until it is killed too.
        if (folder / "lock").exists():
            os.kill(int((folder / "lock").read_text().split()[0]), signal.SIGKILL)
    assert not (folder / "summary.json").exists()
    assert not (cut / "results.jsonl").exists()

    assert main([str(grid), "--out", str(cut)]) == 0
    (found,) = lines(cut)
    assert [found] == lines(straight)
    assert scores(cut) == scores(straight)
    assert found["num_lower_steps"] == 100
