"""Fine-tune a language model to classify texts, or score them: all weights, or LoRA and its kin.

Without options: a demo of LoRA and BiLoRA that needs no network and a few minutes on two CPU cores.
"""

import sys
from collections.abc import Sequence

from applications.options.arguments import Options
from applications.runs.command import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_command("nlu", arguments, description=__doc__, instead=demo_where_asked)


def demo_where_asked(options: Options, words: Sequence[str]) -> bool:
    """Run the demo where no data were asked for."""
    data = options.data
    if not (data.task_name is None and data.data_dir is None and data.train_file is None):
        return False
    from rich.console import Console

    from applications.families.classification import TextClassification
    from applications.options.command_line import parse_options
    from applications.runs.closing import closing
    from applications.runs.demo import PRESETS, of_method, run_demo

    options = parse_options(words, presets=PRESETS)
    for last in run_demo(options, Console())[-1:]:
        own = of_method(options, last["method"])
        print("\n".join(closing(last, own, TextClassification())))
    return True


if __name__ == "__main__":
    sys.exit(main())
