"""How much faster two processes are than one, on the cores of one machine.

``python -m benchmarks.processes [--quick] [--json FILE]`` starts two processes of one thread each.
In turns, the first trains alone, and both train together: with the same batch in all, of which each
has a half (strong scaling: twice as fast at best), and with the same batch each (weak scaling: as
fast at best, on twice the data). A row holds the median over the turns of the ratio of the two
times, one turn beside the other, with the least and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from benchmarks.versions import version_of
from blo import Engine, Method, Problem, ProblemGraph, cg, darts, f2sa

METHODS: dict[str, Method] = {"darts()": darts(), "cg(5)": cg(5, rtol=None), "f2sa(5)": f2sa(5)}
BATCH, FEATURES, WIDTH = 4096, 64, 256


def engine(method: Method, rows: int, group: Any) -> Engine:
    """A network of three layers below weights of its inputs, on batches of `rows`."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(FEATURES, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, 10),
    )
    scales = nn.ParameterDict({"log": torch.zeros(FEATURES)})
    drawn = torch.Generator().manual_seed(distributed.get_rank())
    x = torch.randn(rows, FEATURES, generator=drawn)
    batch = (x, x[:, :10].argmax(1))

    def loss(batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(net(batch[0] * scales["log"].exp()), batch[1])

    upper, lower = (torch.optim.SGD(m.parameters(), 0.01) for m in (scales, net))
    modules = [net, scales]
    above = Problem("upper", loss, modules, upper, [batch])
    below = Problem("lower", loss, modules, lower, [batch], method=method)
    return Engine(ProblemGraph([above, below]), distributed=group)


def seconds(made: Engine | None, rounds: int) -> float:
    """The seconds a round, the processes waiting for each other before and after."""
    distributed.barrier()
    start = time.perf_counter()
    if made is not None:
        made.run(rounds)
    distributed.barrier()
    return (time.perf_counter() - start) / rounds


def measured(name: str, turns: int, rounds: int) -> list[dict[str, Any]]:
    """Both kinds of scaling of one method."""
    first = distributed.get_rank() == 0
    alone = engine(METHODS[name], BATCH, False) if first else None
    halves, wholes = (engine(METHODS[name], rows, None) for rows in (BATCH // 2, BATCH))
    for made in (halves, wholes):
        made.run(2)
    if alone is not None:
        alone.run(2)
    times = [[seconds(made, rounds) for made in (alone, halves, wholes)] for _ in range(turns)]
    found = []
    for kind, column, best in (("strong", 1, 2.0), ("weak", 2, 1.0)):
        ratios = sorted(row[0] / row[column] for row in times)
        found.append(
            {
                "method": name,
                "scaling": kind,
                "ratio": statistics.median(ratios),
                "least": ratios[0],
                "largest": ratios[-1],
                "best_possible": best,
                "seconds_alone": statistics.median(row[0] for row in times),
                "bytes_a_round": halves.reduction.num_bytes // halves.round,
                "turns": turns,
                "rounds": rounds,
            }
        )
    return found


def work(rank: int, port: int, turns: int, rounds: int, answers: Any) -> None:
    """Take part as `rank`; the first process answers."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    rows = [row for name in METHODS for row in measured(name, turns, rounds)]
    if rank == 0:
        answers.put(rows)
    distributed.destroy_process_group()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a JSON line for each row")
    asked = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    turns, rounds = (3, 2) if asked.quick else (15, 3)
    running = [
        context.Process(target=work, args=(rank, port, turns, rounds, answers)) for rank in range(2)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise SystemExit("a process has failed; what it said stands above")
    about = {
        "library": "blo-torch",
        "version": version_of("blo-torch"),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    lines = [row | about for row in answers.get()]
    print("method | scaling | time alone / time of two: median [least, largest] | best possible")
    for row in lines:
        spread = f"{row['ratio']:.2f} [{row['least']:.2f}, {row['largest']:.2f}]"
        print(f"{row['method']} | {row['scaling']} | {spread} | {row['best_possible']:g}")
    if asked.json is not None:
        asked.json.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
