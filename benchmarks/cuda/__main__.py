"""``python -m benchmarks.cuda``: what the library does on one CUDA device, in one command.

Part 1 compares every method and adapter with the CPU, part 2 the behaviour of the device, part 3
trains, part 4 measures time and memory; ``--part 5`` writes the page again from what is there.
Every row is on disk as soon as it is known, in ``OUT/<device>/part<N>.jsonl``, with ``page.md``
beside. A row that fails is a row; the exit status is 1 where one failed and 3 where one was not
run. ``--dry`` runs all of it in small on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from benchmarks.cuda.page import MACHINE, write_page
from benchmarks.cuda.rows import Row, Setting, not_run, read, run_rows
from benchmarks.versions import version_of

MODULES = {1: "methods", 2: "behaviour", 3: "training", 4: "speed"}
# Of the minutes that are left, what a part may take of what is left for it and those behind it.
SHARES = {1: 2.5, 2: 1.0, 3: 2.0, 4: 2.5}
RESULTS = Path("benchmarks/results/cuda")
DATA = Path("runs/cuda")
FAILED, NOT_RUN = 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--part", type=int, choices=[*MODULES, 5], help="this part alone")
    parser.add_argument("--dry", action="store_true", help="all in small, on the CPU")
    parser.add_argument("--smallest", action="store_true", help="of --dry, a few rows")
    parser.add_argument("--minutes", type=float, help="at most, in all; 8, or 5 with --dry")
    parser.add_argument("--out", type=Path, help=f"results; {RESULTS}, with --dry a new folder")
    parser.add_argument("--data", type=Path, help=f"what --pack wrote; {DATA}")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="write model and text, and stop")
    parser.add_argument("--together", action="store_true", help="no process for each part")
    options = parser.parse_args(arguments)
    if options.pack is not None:
        from benchmarks.cuda.pack import pack

        file = pack(options.pack)
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
        return 0
    if options.smallest and not options.dry:
        parser.error("--smallest belongs to --dry")
    if not options.dry and options.part != 5 and not torch.cuda.is_available():
        parser.error("this PyTorch sees no CUDA device; --dry runs in small on the CPU")
    device = torch.device("cpu" if options.dry or not torch.cuda.is_available() else "cuda")
    data = options.data if options.dry else options.data or DATA
    setting = Setting(device, options.dry, options.smallest, data)
    place = options.out or (Path(tempfile.mkdtemp(prefix="blo-cuda-")) if options.dry else RESULTS)
    folder = place / folder_name(device)
    parts = list(MODULES) if options.part in (None, 5) else [options.part]
    if options.part != 5:
        minutes = options.minutes or (5.0 if options.dry else 8.0)
        if options.dry:
            torch.set_num_threads(1)
        describe(folder, setting)
        run_parts(parts, folder, setting, 60 * minutes, together=options.together)
    print(write_page(folder))
    return status(folder, parts)


def run_parts(
    parts: Sequence[int], folder: Path, setting: Setting, seconds: float, *, together: bool
) -> None:
    """Run the parts one after the other, each in a process of its own unless together, so that an
    error that spoils the device, or a row that hangs, ends one part and not the others.
    """
    end = time.monotonic() + seconds
    for position, part in enumerate(parts):
        file = folder / f"part{part}.jsonl"
        left, following = end - time.monotonic(), parts[position:]
        allotted = left * SHARES[part] / sum(SHARES[p] for p in following)
        print(f"part {part}: {allotted:.0f} s at most", flush=True)
        file.unlink(missing_ok=True)
        reason = f"the part's {allotted:.0f} seconds were used up"
        if together:
            run_rows(rows_of(part)(setting), file, part, until=time.monotonic() + allotted)
        elif allotted > 0:
            problem = in_a_process(part, folder, setting, allotted)
            reason = problem or reason
        not_run(file, part, reason)
        write_page(folder)


def in_a_process(part: int, folder: Path, setting: Setting, allotted: float) -> str | None:
    """Run a part in another process, stopped when its time is over; return what went wrong."""
    own = {"part": part, "folder": str(folder), "until": 0.95 * allotted - 3.0}
    own |= {"device": setting.device.type, "dry": setting.dry, "smallest": setting.smallest}
    own |= {"data": None if setting.data is None else str(setting.data)}
    command = [sys.executable, "-c", INSIDE, json.dumps(own)]
    paths = os.pathsep.join([os.getcwd(), *(p for p in sys.path if p)])
    try:
        done = subprocess.run(
            command, timeout=allotted, check=False, env={**os.environ, "PYTHONPATH": paths}
        )
    except subprocess.TimeoutExpired:
        return f"stopped while it ran, after the part's {allotted:.0f} seconds"
    return None if done.returncode == 0 else f"the process ended with status {done.returncode}"


INSIDE = "import sys; from benchmarks.cuda.__main__ import inside; inside(sys.argv[1])"


def inside(text: str) -> None:
    """Run one part as `in_a_process` asks; seconds count from here."""
    own = json.loads(text)
    until = time.monotonic() + own["until"]
    data = None if own["data"] is None else Path(own["data"])
    setting = Setting(torch.device(own["device"]), own["dry"], own["smallest"], data)
    if own["dry"]:
        torch.set_num_threads(1)
    file = Path(own["folder"]) / f"part{own['part']}.jsonl"
    run_rows(rows_of(own["part"])(setting), file, own["part"], until=until)


def rows_of(part: int) -> Callable[[Setting], Iterable[Row]]:
    """Return the function that yields a part's rows; its module is imported here."""
    found: Callable[[Setting], Iterable[Row]] = import_module(
        f"benchmarks.cuda.{MODULES[part]}"
    ).rows
    return found


def folder_name(device: torch.device) -> str:
    """Return the device's name in letters, digits and hyphens."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in name).split()
    return "-".join(words)


def describe(folder: Path, setting: Setting) -> None:
    """Write what the numbers were found on."""
    cuda = setting.device.type == "cuda"
    known: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "the CPU beside itself (a dry run)",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "transformers": version_of("transformers"),
        "peft": version_of("peft"),
        "betty-ml": version_of("betty-ml"),
        "commit": commit(),
        "CPU threads": torch.get_num_threads(),
        "float32 matmul": torch.get_float32_matmul_precision(),
    }
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        known["memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
        known["compute capability"] = f"{properties.major}.{properties.minor}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MACHINE).write_text(json.dumps(known, indent=1) + "\n")


def commit() -> str:
    """Return the commit of the checkout, where git can say."""
    try:
        command = ["git", "describe", "--always", "--dirty"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def status(folder: Path, parts: Iterable[int]) -> int:
    """Return the exit status, and say what went wrong."""
    found = [line for part in parts for line in read(folder / f"part{part}.jsonl")]
    ended = [line["status"] for line in found if "status" in line]
    failed = sum(s in ("failed", "error") for s in ended)
    left = ended.count("not run")
    print(f"{len(ended)} rows: {failed} failed, {left} not run, {ended.count('absent')} absent")
    return FAILED if failed else NOT_RUN if left else 0


if __name__ == "__main__":
    sys.exit(main())
