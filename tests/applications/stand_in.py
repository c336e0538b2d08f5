"""Stands for an application: reads config.json, takes steps, writes what a run leaves.

Started as a process by the tests of compare. What it does wrong, if anything, its learning rate
says, so that the grids under test are ordinary ones.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from tests.applications.synthetic_grids import summary

FAILS, IS_KILLED, LEAVES_NOTHING, TAKES_LONG = 0.5, 0.25, 0.125, 0.0625


def main(config: Path) -> int:
    options = json.loads(config.read_text())
    folder, rate = Path(options["output_dir"]), options.get("learning_rate")
    with (folder / "starts.txt").open("a") as starts:
        starts.write(f"{' '.join(sys.argv[2:])} threads={os.environ['OMP_NUM_THREADS']}\n")
    state = folder / "checkpoints" / "state"
    state.parent.mkdir(exist_ok=True)
    done = int(state.read_text()) if state.exists() else 0
    for step in range(done, options.get("max_steps", 1)):
        draft = state.with_suffix(".draft")
        draft.write_text(str(step + 1))
        draft.replace(state)  # whole, whenever it is killed
        if rate == TAKES_LONG:
            time.sleep(0.05)
    if rate == FAILS:
        sys.stderr.write("FloatingPointError: the loss is not finite\n")
        return 1
    if rate == IS_KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if rate != LEAVES_NOTHING:
        found = summary(
            method=options["method"], task=options.get("task_name") or "files", seed=options["seed"]
        )
        (folder / "summary.json").write_text(json.dumps(found | {"num_lower_steps": done}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
