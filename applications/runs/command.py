"""What every fine-tuning command does around its run.

Families, training and the libraries below them are imported once the options are read: ``--help``
and a misspelt flag need none of them.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace

from applications.options.arguments import Options
from applications.options.command_line import parse_options
from applications.options.commands import COMMANDS
from applications.runs.ending import ended, resumed


def run_command(
    command: str,
    arguments: Sequence[str] | None = None,
    *,
    description: str | None,
    instead: Callable[[Options, Sequence[str]], bool] = lambda options, words: False,
) -> int:
    """Run a fine-tuning command.

    Args:
        command: its name: ``nlu``.
        arguments: the words of the command line; by default those of the process.
        description: what ``--help`` says first.
        instead: given the options and the words, may run something else, and says so.

    Returns:
        The exit status: 0, 1 where training failed, 2 where something cannot be done as asked, 128
        and the signal's number after an interruption (130 for Ctrl-C). Of several processes that
        torchrun has started, the first one alone prints results.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    prog = f"python -m applications.{command}"
    groups = COMMANDS[command].groups

    def work() -> None:
        options = parse_options(words, groups=groups, description=description or "", prog=prog)
        from applications import processes
        from applications.models.loading import device

        quiet()
        with processes.together(device(options.model)), spoken_once():
            if not processes.is_first():
                options = replace(options, run=replace(options.run, disable_tqdm=True))
            if not instead(options, words):
                run(options, command)

    return ended(work, resumed())


def run(options: Options, command: str) -> None:
    """Train and say what came of it, or say what it would take."""
    from rich.console import Console

    from applications.families.named import family_of
    from applications.options.completion import completed
    from applications.options.unused import unused_lines
    from applications.runs.closing import closing
    from applications.runs.estimate import estimates, plan_table
    from applications.runs.experiment import finetune

    family = family_of(command)
    if options.dry_run:
        Console().print(plan_table(estimates(options, family)))
        for line in unused_lines(completed(options, family), command):
            print(line)
        return
    print("\n".join(closing(finetune(options, family), options, family)))


@contextmanager
def spoken_once() -> Iterator[None]:
    """Let the first process of a run speak, and no other."""
    from applications import processes

    if processes.is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def quiet() -> None:
    """Leave the screen to this command: no bars and remarks of the libraries below it."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # peft asks every transformers model for an attribute that has a new name.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
