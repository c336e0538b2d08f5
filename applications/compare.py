"""Run a grid of methods x tasks x train sizes x seeds, and compare what comes out.

The grid stands in a file, or its axes are named by the options; options of the application itself
(--max_steps 300) hold for all its runs. Finished runs are not run again: the same command goes on
after an interruption, and two of them share the work.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from applications.comparison.attempt import Ended
from applications.comparison.backends import Pool, Processes, RayTasks, Work, outcomes
from applications.comparison.data import with_data
from applications.comparison.folder import place_of, refuse_changed
from applications.comparison.grid import Grid, Run, narrowed, planned, read_grid, shard
from applications.comparison.progress import screen
from applications.comparison.results import failures, remember, write_results
from applications.comparison.settings import check_command, given
from applications.errors import UsageError
from applications.options.plain import Parser
from applications.options.versions import told
from applications.pages.table import as_lines
from applications.runs.ending import GoesOn, ended

SUFFIXES = (".json", ".yaml", ".yml")
PROG = "python -m applications.compare"


def parser() -> Parser:
    """The parser of this command's own options."""
    made = Parser(
        prog=PROG,
        description=__doc__,
        usage="%(prog)s [GRID.yaml | GRID.json] --out DIR [OPTIONS] [--APPLICATION_OPTION ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--version", action="version", version=told(PROG))
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the grid")
    add("--tasks", nargs="+", metavar="NAME", help="tasks: some of the file's, or plain names")
    add("--methods", nargs="+", metavar="NAME", help="methods: some of the file's, or plain names")
    add("--seeds", nargs="+", metavar="N", help="how many seeds, or several seeds (0,1,2)")
    add("--train_sizes", nargs="+", metavar="N", help="training examples; 'all' for all there are")
    add("--command", help="nlu, nlg or token_classification; default: that of each task")
    add("--reference", metavar="NAME", help="compare every method with this one only")
    add("--resplit", action="store_true", help="every seed draws its own splits and subsets")
    add("--shard", metavar="I/N", help="run this part of N only: one machine's share")
    add("--processes", type=int, default=2, metavar="N", help="runs at once (default: 2)")
    add("--threads", type=int, default=1, metavar="N", help="threads of a run (default: 1)")
    add("--devices", metavar="A,B", help="CUDA devices; each of the runs at once gets one of them")
    add("--backend", choices=["processes", "ray"], default="processes", help="where runs are run")
    add("--ray_address", metavar="ADDRESS", help="a running Ray cluster; default: a local one")
    add("--ray_gpus", type=float, default=0.0, metavar="X", help="GPUs that Ray reserves for a run")
    add("--overwrite", action="store_true", help="remove results that other options have left")
    add(
        "--report_only",
        action="store_true",
        help="run nothing; report what is there",
    )
    add("--dry_run", action="store_true", help="run and write nothing: list the runs")
    add(
        "--costs",
        action="store_true",
        help="with --dry_run: load data and models too, and say what the runs take",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 where every run of the grid is finished, 1 where some failed, 2 where
        something cannot be done as asked, 128 and the signal's number after an interruption.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(stderr=False)
    file = Path(words[0]) if words and Path(words[0]).suffix in SUFFIXES else None

    def work() -> int:
        asked, rest = parser().parse_known_args(words if file is None else words[1:])
        check_numbers(asked)
        from applications import processes  # brings torch, which --help goes without

        processes.refuse_several("applications.compare")
        return compare(asked, file, rest, words, console)

    return ended(work, GoesOn.CONTINUED)


def check_numbers(asked: argparse.Namespace) -> None:
    """Raise a UsageError for numbers that cannot be."""
    for name in ("processes", "threads"):
        if getattr(asked, name) < 1:
            value = getattr(asked, name)
            raise UsageError(f"argument --{name}: must be at least 1, got {value}")


def compare(
    asked: argparse.Namespace,
    file: Path | None,
    rest: Sequence[str],
    words: Sequence[str],
    console: Console,
) -> int:
    """Plan, run, collect and report; returns the exit status."""
    out: Path = asked.out
    if asked.report_only:
        if not (out / "runs").is_dir():
            raise UsageError(f"argument --report_only: there are no runs below {out}")
        return finish(out, console, missing=0)
    flags = given(rest, "command line")
    for name, axis in {"task_name": "--tasks", "method": "--methods"}.items():
        if name in flags:
            raise UsageError(f"command line: option {name!r} is an axis of the grid: use {axis}")
    grid = asked_grid(asked, file)
    runs = with_data(part(planned(grid, flags), asked.shard))
    if asked.dry_run:
        say_plan(runs, out, costs=asked.costs)
        return 0
    if asked.costs:
        raise UsageError("argument --costs: goes with --dry_run, which is not given; give both")
    if not asked.overwrite:
        refuse_changed(out, runs)
    remember(out, [PROG, *words], methods=list(grid.methods), reference=grid.reference)
    failed = run_all(runs, asked, console)
    return finish(out, console, missing=failed)


def say_plan(runs: Sequence[Run], out: Path, *, costs: bool) -> None:
    """List the runs, and with ``costs`` say what those to run take."""
    finished = {run.name: place_of(out, run).finished(run) for run in runs}
    for name, done in finished.items():
        print(f"{name}  {'finished' if done else 'to run'}", flush=True)
    left = [run for run in runs if not finished[run.name]]
    if costs and left:
        from applications.comparison.costs import cost_table  # brings torch and models
        from applications.runs.command import quiet

        quiet()
        print("\n".join(as_lines(cost_table(left))))


def asked_grid(asked: argparse.Namespace, file: Path | None) -> Grid:
    """The grid of the file, if there is one, with what the command line says instead."""
    grid = Grid() if file is None else read_grid(file)
    if asked.command is not None:
        if file is not None:
            raise UsageError("argument --command: the grid file says which application runs a task")
        grid = replace(grid, command=check_command(asked.command, "argument --command"))
    if asked.resplit:
        grid = replace(grid, resplit=True)
    grid = narrowed(
        grid,
        tasks=listed(asked.tasks),
        methods=listed(asked.methods),
        sizes=listed(asked.train_sizes),
        seed_words=listed(asked.seeds),
    )
    return grid if asked.reference is None else replace(grid, reference=asked.reference)


def listed(words: Sequence[str] | None) -> list[str] | None:
    """The names in words such as ``a,b`` and ``a b``."""
    return None if words is None else [name for word in words for name in word.split(",") if name]


def part(runs: list[Run], text: str | None) -> list[Run]:
    """The shard that the text ``i/n`` names.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return runs
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UsageError(f"argument --shard: must be I/N with 1 <= I <= N, got {text!r}")
    return shard(runs, int(number), int(of))


def run_all(runs: Sequence[Run], asked: argparse.Namespace, console: Console) -> int:
    """Run what is not finished; returns how many runs failed. results.jsonl is kept up to date."""
    out: Path = asked.out
    devices = () if asked.devices is None else tuple(asked.devices.split(","))
    at_once = min(asked.processes, len(devices)) if devices else asked.processes
    work = Work(out, threads=asked.threads, overwrite=asked.overwrite, devices=devices)
    pool: Pool
    if asked.backend == "ray":
        pool = RayTasks(work, address=asked.ray_address, gpus=asked.ray_gpus)
        at_once = len(runs)
    else:
        pool = Processes(work, at_once)
    failed = 0
    with screen(console, total=len(runs), out=out) as shown:
        for outcome in outcomes(
            runs, pool, at_once=at_once, on_start=shown.started, on_wait=shown.waiting
        ):
            shown.ended(outcome)
            failed += outcome.ended is Ended.FAILED
            if outcome.ended is Ended.FINISHED:
                write_results(out)
    return failed


def finish(out: Path, console: Console, *, missing: int) -> int:
    """Write the results and the report, and say where they are; returns the exit status."""
    from applications.comparison.page import write_report  # brings matplotlib, scipy

    results = write_results(out)
    for failure in failures(out):
        place = f"{failure['folder']}: {failure['reason']}; see log.txt there"
        console.print(f"failed: {place}", markup=False, highlight=False, soft_wrap=True)
    text = f"{len(results)} finished runs in {out / 'results.jsonl'}"
    if results:
        text += f"; {write_report(out)}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
