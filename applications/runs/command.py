"""What every fine-tuning command does around its run."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any

import datasets
import transformers
from rich.console import Console

from applications import processes
from applications.errors import UsageError
from applications.families.family import Family
from applications.models.loading import device
from applications.options.arguments import Options
from applications.options.command_line import parse_options
from applications.options.commands import COMMANDS
from applications.pages.table import shown
from applications.runs.estimate import estimates, plan_table
from applications.runs.experiment import finetune


def run_command(
    family: Family,
    arguments: Sequence[str] | None = None,
    *,
    description: str | None,
    instead: Callable[[Options, Sequence[str]], bool] = lambda options, words: False,
) -> int:
    """Run a fine-tuning command.

    Args:
        family: the kind of fine-tuning.
        arguments: the words of the command line; by default those of the process.
        description: what ``--help`` says first.
        instead: given the options and the words, may run something else, and says so.

    Returns:
        The exit status: 0, 1 where training failed, 2 where something cannot be done as asked, 130
        after an interruption. Of several processes that torchrun has started, the first one alone
        prints results.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    quiet()
    prog = f"python -m applications.{family.command}"
    groups = COMMANDS[family.command].groups
    try:
        options = parse_options(words, groups=groups, description=description or "", prog=prog)
        with processes.together(device(options.model)), spoken_once():
            if not processes.is_first():
                options = replace(options, run=replace(options.run, disable_tqdm=True))
            if instead(options, words):
                return 0
            if options.dry_run:
                Console().print(plan_table(estimates(options, family)))
            else:
                print(result(finetune(options, family)))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not processes.was_left(error):
            raise
        print(
            f"error: process {processes.rank()} of {processes.count()} ends, because another one "
            f"is gone (what it said stands above or in its own log; if it said nothing, it was "
            f"killed, as for memory): --resume goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


@contextmanager
def spoken_once() -> Iterator[None]:
    """Let the first process of a run speak, and no other."""
    if processes.is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def result(summary: Mapping[str, Any]) -> str:
    """The last line on the screen."""
    train, test = shown(summary["train_metric"]), shown(summary["test_metric"])
    return f"{summary['metric_name']}: train {train}, test {test}"


def quiet() -> None:
    """Leave the screen to this command: no bars and remarks of the libraries below it."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # peft asks every transformers model for an attribute that has a new name.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
