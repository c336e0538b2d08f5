"""Fine-tune a language model to classify texts, or score them, with LoRA, DoRA, BiLoRA or BiDoRA.

Without options: a demo of LoRA and BiLoRA that needs no network and a few minutes on two CPU cores.
"""

import logging
import sys
import warnings
from collections.abc import Sequence

import datasets
import transformers
from rich.console import Console

from applications.common.command_line import parse_options
from applications.common.demo import PRESETS, is_demo, run_demo
from applications.common.errors import UsageError
from applications.common.experiment import finetune
from applications.common.report import shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0, 1 where training failed, 2 where something cannot be done as asked, 130
        after an interruption.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    quiet()
    try:
        options = parse_options(given, description=__doc__, prog="python -m applications.nlu")
        if is_demo(options):
            run_demo(parse_options(given, presets=PRESETS), Console())
        else:
            summary = finetune(options)
            train, test = shown(summary["train_metric"]), shown(summary["test_metric"])
            print(f"{summary['metric_name']}: train {train}, test {test}")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def quiet() -> None:
    """Leave the screen to this command: no bars and remarks of the libraries below it."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # peft asks every transformers model for an attribute that has a new name.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
