"""--help and --version come without the libraries that take seconds to import."""

import subprocess
import sys

import pytest

from applications.errors import UsageError
from applications.options.command_line import parse_options
from applications.runs.trackers import check_trackers

COMMANDS = ("nlu", "nlg", "token_classification", "compare", "report", "predict", "reweight")
HEAVY = ("torch", "peft", "datasets", "torchmetrics", "accelerate", "matplotlib", "scipy")
SCRIPT = f"""
import sys
from importlib import import_module
for name in {COMMANDS}:
    for flag in ("--help", "--version"):
        try:
            import_module("applications." + name).main([flag])
        except SystemExit as ended:
            assert not ended.code
print("HEAVY", *[name for name in {HEAVY} if name in sys.modules])
"""


def test_help_and_version_import_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "HEAVY"
    for name in COMMANDS:
        assert f"python -m applications.{name}: blo-torch " in done.stdout
        assert any(line.startswith(f"usage: python -m applications.{name}") for line in lines)


def test_a_tracker_that_accelerate_does_not_know_is_refused() -> None:
    assert parse_options(["--report_to", "tensorboard,none"]).run.report_to == [
        "tensorboard",
        "none",
    ]
    check_trackers(["tensorboard", "all", "none"])
    with pytest.raises(UsageError, match=r"--report_to: .*no tracker 'excel'; choose among aim"):
        check_trackers(["excel"])
    with pytest.raises(UsageError, match="'clearml' is not installed"):
        check_trackers(["clearml"])
