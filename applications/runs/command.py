"""What every fine-tuning command does around its run."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import transformers
from rich.console import Console

from applications.errors import UsageError
from applications.families.family import Family
from applications.options.arguments import Options
from applications.options.command_line import parse_options
from applications.options.commands import COMMANDS
from applications.pages.table import shown
from applications.runs.estimate import estimates, plan_table
from applications.runs.experiment import finetune
from applications.runs.failures import sentence
from applications.runs.interruption import Interrupted


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
        The exit status: 0, 1 where training failed, 2 where something cannot be done as asked, 128
        and the signal's number after an interruption (130 for Ctrl-C).
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    quiet()
    prog = f"python -m applications.{family.command}"
    groups = COMMANDS[family.command].groups
    try:
        options = parse_options(words, groups=groups, description=description or "", prog=prog)
        if instead(options, words):
            return 0
        if options.dry_run:
            Console().print(plan_table(estimates(options, family)))
        else:
            print(result(finetune(options, family)))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        print(str(error) or "interrupted before anything was trained", file=sys.stderr)
        return 128 + number
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 1
    return 0


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
