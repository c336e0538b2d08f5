"""Fine-tune a causal language model to write text for an input: all weights, or LoRA and its kin.

Data: a known task (--task_name e2e, webnlg), its files (--data_dir), or files with an input and a
text a line (--train_file, --test_file). Scores: BLEU, NIST, ROUGE-L, chrF and perplexity.
"""

import sys
from collections.abc import Sequence

from applications.runs.command import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_command("nlg", arguments, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
