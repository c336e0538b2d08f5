"""How commands end: the sentence, the exit status, and what goes on, which is true."""

import errno
import os
import signal
from pathlib import Path

import pytest

from applications import compare, continual, predict, report
from applications.comparison import page
from applications.errors import UsageError
from applications.runs import predicting
from applications.runs.claim import Claim
from applications.runs.ending import GoesOn, begun_anew, ended, resumed
from applications.runs.naming import HANDED
from applications.sequences.grid import Grid
from tests.applications.test_claims import MARK, left_by


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("goes_on", GoesOn)
def test_a_signal_is_a_sentence_and_its_status(
    number: int, goes_on: GoesOn, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(number, signal.default_int_handler)  # ignored in the background
    assert ended(lambda: os.kill(os.getpid(), number), goes_on) == 128 + number
    assert capsys.readouterr().err == f"interrupted: {goes_on.untouched}\n"
    signal.signal(number, before)


@pytest.mark.parametrize("goes_on", GoesOn)
def test_a_full_disk_is_a_sentence_that_fits_the_command(
    goes_on: GoesOn, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a/file")

    assert ended(full, goes_on) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: a/file could not be written (No space left on device)")
    assert said.endswith(f"free some room, and {goes_on.value}\n")


def test_a_lost_connection_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    def lost() -> None:
        raise ConnectionError("the Hub\nis away")

    assert ended(lost, GoesOn.REPEATED) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ConnectionError (the Hub is away): mend what it names, and the")


def test_what_is_nobody_s_fault_is_raised() -> None:
    def wrong() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        ended(wrong, GoesOn.REPEATED)
    assert ended(lambda: 1, GoesOn.REPEATED) == 1
    assert ended(lambda: None, GoesOn.REPEATED) == 0


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "a/file")


def test_every_command_says_what_goes_on_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--resume` is named by the commands that take it, and by no other."""
    monkeypatch.setattr(predicting, "predict", full)
    monkeypatch.setattr(page, "write_report", full)
    monkeypatch.setattr(compare, "compare", full)
    monkeypatch.setattr(Grid, "left", full)
    calls = {
        "continual": (continual.main, ["--task_name", "trec"], GoesOn.CONTINUED),
        "compare": (compare.main, ["--out", str(tmp_path)], GoesOn.CONTINUED),
        "predict": (predict.main, [str(tmp_path), "--input_file", "a.csv"], GoesOn.REPEATED),
        "report": (report.main, [str(tmp_path)], GoesOn.REPEATED),
    }
    for name, (main, words, goes_on) in calls.items():
        assert main(words) == 1, name
        assert capsys.readouterr().err.endswith(f"{goes_on.value}\n"), name


def test_a_run_of_a_grid_is_gone_on_with_and_begun_anew_by_the_grid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = MARK.__class__(**{**vars(MARK), "data": {"train": "4 b"}})
    left_by(tmp_path, other)
    said = []
    for handed in (False, True):
        if handed:
            monkeypatch.setenv(HANDED, "5")
        with pytest.raises(UsageError) as caught:
            Claim(tmp_path, True, handed).working(MARK, print)
        said.append(str(caught.value))
    assert "the data have changed" in said[0]
    assert "leave --resume out to begin anew" in said[0]
    assert f"put the data back, or remove {tmp_path}" in said[1]
    assert "leave" not in said[1]
    assert resumed() is GoesOn.BY_THE_GRID
    assert begun_anew(tmp_path) == f"remove {tmp_path}"
