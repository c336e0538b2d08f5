"""Fine-tune a language model to find named entities, with any of the methods of applications.nlu.

Data: a known task (--task_name wnut17), a folder with its files (--data_dir), or files with a word
and its tag a line, or json rows with lists of words and tags (--train_file, --test_file).
"""

import sys
from collections.abc import Sequence

from applications.runs.command import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_command("token_classification", arguments, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
