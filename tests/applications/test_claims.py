"""The folder of a run: what is replaced, what is refused, and who may write there."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from applications.errors import UsageError
from applications.nlu import main
from applications.options.arguments import Options
from applications.options.command_line import parse_options, words
from applications.pages.locking import held
from applications.pages.writing import remove_drafts, write_whole
from applications.runs import claim as claims
from applications.runs import interruption
from applications.runs.claim import Claim, claimed
from applications.runs.experiment import how_to_go_on
from applications.runs.interruption import Interrupted, Signals, signals
from applications.runs.mark import Mark, digest_of_data, digest_of_model, read_mark
from applications.runs.naming import HANDED
from applications.runs.outputs import RunFolder
from applications.runs.training import read_checkpoint
from tests.applications.tiny_runs import (
    Run,
    logged,
    run,
    same_tensors,
    silent,
    untimed,
)

MARK = Mark("nlu", "lora", "tiny", "0", {"train": "4 a"}, 1, "cpu")


def options(place: Path, *flags: str) -> Options:
    return parse_options(["--model", "none/such", "--output_dir", str(place), *flags])


def left_by(place: Path, mark: Mark | None = MARK, *, text: str = "old") -> RunFolder:
    """A folder as a run leaves it."""
    folder = RunFolder(place)
    folder.write_config({"method": text})
    folder.log({"round": text})
    folder.save_checkpoint(0, 2, {"options": {}}, keep=1)
    (place / "adapter").mkdir()
    (place / "adapter" / "weights").write_text(text)
    if mark is not None:
        mark.write(place)
    return folder


def finished(place: Path) -> None:
    left_by(place)
    with claimed(options(place, "--resume")) as claim:
        claim.begin(MARK, silent)
        claim.finish()


def contents(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): path.read_text(errors="replace")
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name not in ("lock", "mark.json")
    }


@pytest.mark.parametrize(
    "fill, message",
    [
        (
            lambda p: left_by(p, None),
            r"--output_dir: .* holds what no run .*adapter, checkpoints, c",
        ),
        (lambda p: (p / "train.csv").write_text("text,label"), "holds what no run .*train.csv"),
        (lambda p: (p / "mark.json").write_text('{"format": "other"}'), "no run .*mark.json"),
        (lambda p: (p / "mark.json").write_text("{"), "no run of this command has left"),
    ],
)
def test_a_foreign_folder_is_refused_and_stays_as_it_is(
    fill: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    fill(tmp_path)
    before = contents(tmp_path)
    for flags in ((), ("--resume",)):
        with (
            pytest.raises(UsageError, match="--resume: no run" if flags else message),
            claimed(options(tmp_path, *flags)),
        ):
            pass
    assert contents(tmp_path) == before
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    "flags, file",
    [
        (("--method", "mole", "--experts"), "adapter"),
        (("--train_file",), "generated.jsonl"),
    ],
)
def test_a_result_that_the_run_reads_is_not_replaced(
    flags: tuple[str, ...], file: str, tmp_path: Path
) -> None:
    finished(tmp_path)
    (tmp_path / "generated.jsonl").touch()
    before = contents(tmp_path)
    for read, refused in ((tmp_path / file, True), (tmp_path / "own" / file, False)):
        expected = pytest.raises(UsageError, match=f"--output_dir: .* holds what {flags[-1]} names")
        with (
            expected if refused else nullcontext(),
            claimed(options(tmp_path, *flags, str(read))),
        ):
            pass
    assert contents(tmp_path).keys() >= before.keys()


def test_logs_and_hidden_files_make_no_folder_foreign(tmp_path: Path) -> None:
    for name in ("slurm-12.out", "log.txt", ".gitignore"):
        (tmp_path / name).touch()
    with claimed(options(tmp_path)) as claim:
        claim.begin(MARK, silent)
    assert read_mark(tmp_path) == MARK
    assert {"slurm-12.out", "log.txt", ".gitignore"} < {path.name for path in tmp_path.iterdir()}


def test_the_folder_of_the_model_is_refused_and_one_inside_it_is_not(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").touch()
    link = tmp_path / "link"
    link.symlink_to(model)
    for place in (model, link, tmp_path):
        with (
            pytest.raises(UsageError, match=r"--output_dir: .* (is|holds) the folder of the base"),
            claimed(options(place, "--model", str(model))),
        ):
            pass
    with claimed(options(model / "runs", "--model", str(model))) as claim:
        claim.begin(MARK, silent)
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "runs"]


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "deep" / "run"):
        with pytest.raises(UsageError, match=r"cannot be a folder, .*/file is a file"):
            claimed(options(place)).__enter__()


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"nothing can be written to .*; give a folder that"):
        claimed(options(tmp_path / "run")).__enter__()
    monkeypatch.undo()

    def refused(path: Path, **settings: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UsageError, match=r"cannot be written to \(Read-only file system\)"):
        claimed(options(tmp_path / "run")).__enter__()


def test_a_run_that_is_refused_before_it_begins_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no"), claimed(options(tmp_path / "a" / "b")):
        raise UsageError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_while_the_first_lasts_and_not_after_it_was_killed(
    tmp_path: Path,
) -> None:
    place = tmp_path / "run"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with claimed(options(place)) as claim:
            claim.begin(MARK, silent)
            os.write(writer, b".")
            signal.pause()
        os._exit(0)
    os.read(reader, 1)
    with pytest.raises(UsageError, match=rf"another run is at work in .* \(process {child} on"):
        claimed(options(place, "--resume")).__enter__()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said: list[str] = []
    with claimed(options(place, "--resume")) as claim:
        claim.begin(MARK, said.append)
    assert said == [f"--resume: the run in {place} has left no checkpoint; it begins anew"]


def test_compare_hands_its_lock_to_its_run(tmp_path: Path) -> None:
    with held(tmp_path / "lock", wait=False) as lock:
        assert lock is not None
        os.environ[HANDED] = str(lock)
        try:
            assert claims.handed_lock(tmp_path)
            (tmp_path / "run.json").touch()
            with claimed(options(tmp_path, "--resume")) as claim:
                claim.begin(MARK, silent)
        finally:
            del os.environ[HANDED]
        with pytest.raises(UsageError, match="another run is at work"):
            claimed(options(tmp_path, "--resume")).__enter__()
    assert read_mark(tmp_path) == MARK


def test_a_finished_result_stays_until_the_new_one_is_there(tmp_path: Path) -> None:
    finished(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "notes").touch()
    with claimed(options(tmp_path)) as claim:
        folder = claim.begin(replace(MARK, method="full"), silent)
        folder.write_config({"method": "new"})
        (folder.path / "model").mkdir()
        now = contents(tmp_path)
        assert before.items() <= now.items()
        assert [n for n in now if n not in before] == ["next/config.json", "notes"]
        claim.finish()
    assert sorted(contents(tmp_path)) == ["config.json", "notes"]
    assert '"new"' in (tmp_path / "config.json").read_text()
    assert not (tmp_path / "next").exists()
    found = read_mark(tmp_path)
    assert found is not None
    assert (found.method, found.finished) == ("full", ("model", "config.json"))


def test_a_replacement_may_be_killed_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk is cut off once; the next command finishes the job."""
    for moment in range(12):
        place = tmp_path / str(moment)
        finished(place)
        with claimed(options(place)) as claim:
            folder = claim.begin(MARK, silent)
            left_by(folder.path, text="new")
            calls = 0

            def cut(
                work: Callable[..., Any], name: str, owner: Any, at: int = moment
            ) -> Callable[..., Any]:
                def either(*args: Any, **settings: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls > at:
                        raise KeyboardInterrupt
                    return work(*args, **settings)

                monkeypatch.setattr(owner, name, either)
                return either

            for owner, name in ((claims.shutil, "rmtree"), (claims.os, "replace")):
                cut(getattr(owner, name), name, owner)
            try:
                claim.finish()
                whole = True
            except KeyboardInterrupt:
                whole = False
            monkeypatch.undo()
        with claimed(options(place, "--resume")):
            text = (place / "adapter" / "weights").read_text()
            assert text in ("old", "new")
            assert f'"{text}"' in (place / "config.json").read_text()
        if whole:
            break
    assert whole
    assert text == "new"


def test_an_unfinished_run_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    left_by(tmp_path)
    (tmp_path / "notes").touch()
    said: list[str] = []
    with claimed(options(tmp_path)) as claim:
        claim.begin(MARK, said.append)
    assert sorted(contents(tmp_path)) == ["notes"]
    assert "replacing an unfinished run" in said[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "bilora"}, "holds a run with method 'lora', not 'bilora'; use --method lora"),
        ({"command": "nlg"}, "command 'nlu', not 'nlg'; use python -m applications.nlu"),
        ({"model": "b"}, "model 'tiny', not 'b'; use --model tiny"),
        ({"model_digest": "1"}, "the weights of 'tiny' .* no longer those"),
        ({"data": {"train": "5 b"}}, "the train split was 4 a and is 5 b .*put the data back"),
        ({"data": {"train": "4 a", "test": "1 c"}}, "the test split was none and is 1 c"),
    ],
)
def test_another_method_model_or_data_are_not_gone_on_with(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    left_by(tmp_path)
    before = contents(tmp_path)
    with claimed(options(tmp_path, "--resume")) as claim:
        with pytest.raises(UsageError, match=f"argument --resume: .*{message}.*--output_dir"):
            claim.begin(replace(MARK, **change), silent)
        said: list[str] = []
        claim.begin(replace(MARK, threads=2), said.append)
    assert contents(tmp_path) == before
    assert said == [
        "warning: the run began with threads 1, now 2: its result is no longer bit-identical to "
        "that of an undisturbed run"
    ]


def test_a_digest_depends_on_what_is_in_the_data_alone() -> None:
    rows = {"text": ["a", "b"], "label": [0, 1]}
    one = digest_of_data({"train": Dataset.from_dict(rows)})
    assert one == digest_of_data({"train": Dataset.from_dict(rows)})
    others = [{"text": ["ab", ""], "label": [0, 1]}, {"text": ["a", "b"], "label": [1, 1]}]
    assert all(one != digest_of_data({"train": Dataset.from_dict(other)}) for other in others)
    net = nn.Linear(2, 2)
    before = digest_of_model(net)
    assert before == digest_of_model(net)
    with torch.no_grad():
        net.weight[1, 1] += 1e-6
    assert before != digest_of_model(net)


def test_what_a_killed_write_left_is_removed_and_what_it_was_replacing_is_put_back(
    tmp_path: Path,
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").touch()
    (tmp_path / ".own-folder").mkdir()
    (tmp_path / ".old-projects").mkdir()  # a name as tempfile makes them
    (tmp_path / ".old-projects" / "thesis.tex").touch()
    child = os.fork()
    if child == 0:

        def fill(draft: Path) -> None:
            draft.mkdir()
            (draft / "new").touch()

        replace_ = os.replace

        def killed(source: Any, target: Any) -> None:
            if Path(target).name == "adapter":  # the old one is out of its place, no new one in it
                os.kill(os.getpid(), signal.SIGKILL)
            replace_(source, target)

        os.replace = killed
        write_whole(tmp_path / "adapter", fill)
    os.waitpid(child, 0)
    assert not (tmp_path / "adapter").exists()
    remove_drafts(tmp_path)
    names = [".old-projects", ".own-folder", "adapter"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / ".old-projects" / "thesis.tex").exists()
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["old"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    asked = options(tmp_path)
    for number in (2, 4):
        state = {"round": number, "options": asked.as_dict(), "processes": [{}]}
        folder.save_checkpoint(0, number, state, keep=2)
    for path in reversed(folder.checkpoints()):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        said: list[str] = []
        if path.name.endswith("4.pt"):
            assert read_checkpoint(folder, 0, asked, said.append)["round"] == 2
            assert "round-00000004.pt is damaged" in said[0]
            assert path.with_suffix(".damaged").exists()
        else:
            with pytest.raises(UsageError, match=r"00000002\.pt is damaged, and .*anew"):
                read_checkpoint(folder, 0, asked, said.append)


@pytest.fixture
def terminal() -> Iterator[None]:
    """Signals as a terminal leaves them: SIGINT is ignored by what a shell starts in the
    background, SIGHUP under nohup.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("terminal")
def test_a_signal_waits_for_the_round_and_a_second_one_does_not() -> None:
    with signals() as found, found.waiting(True):
        os.kill(os.getpid(), signal.SIGTERM)
        assert found.asked == signal.SIGTERM
        found.agree()
        with pytest.raises(KeyboardInterrupt):
            found.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with signals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGHUP)
    with signals() as found, found.waiting(True):
        for _ in range(2):  # of a terminal, and passed on by a launcher
            os.kill(os.getpid(), signal.SIGTERM)
        assert found.asked == signal.SIGTERM
        found.since -= interruption.SAME_SECONDS
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    with signals() as found:
        os.kill(os.getpid(), signal.SIGHUP)
    assert found.asked is None


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_that_the_same_command_goes_on_from(
    number: int, tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a round for the first signal, before an evaluation for the other."""
    flags = ("--eval_steps", "2", "--metric_for_best_model", "loss")
    straight, whole = run(tiny("lora", *flags, folder="straight"))
    owner: Any = RunFolder if number == signal.SIGINT else Signals
    name = "log" if number == signal.SIGINT else "check"
    work, calls = getattr(owner, name), 0

    def struck(*args: Any) -> None:
        nonlocal calls
        calls += 1
        work(*args)
        if calls == (4 if number == signal.SIGINT else 5):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(owner, name, struck)
    with pytest.raises(Interrupted, match="last checkpoint, phase-0-round-0000000") as caught:
        run(tiny("lora", *flags, folder="cut"))
    assert caught.value.number == number
    monkeypatch.undo()
    resumed, folder = run(tiny("lora", *flags, "--resume", folder="cut"))
    assert untimed(resumed) == untimed(straight)
    assert logged(folder) == logged(whole)
    same_tensors(
        folder / "adapter/adapter_model.safetensors", whole / "adapter/adapter_model.safetensors"
    )


def test_what_is_said_of_an_interrupted_run_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claim(tmp_path, False, False)
    assert "before training began: the same command begins again" in how_to_go_on(claim)
    claim.folder = RunFolder(tmp_path)
    assert "first checkpoint, nothing is kept: the same command begins again" in how_to_go_on(claim)
    claim.folder.save_checkpoint(0, 7, {}, keep=1)
    said = how_to_go_on(claim)
    assert "--resume goes on from the last checkpoint, phase-0-round-00000007.pt" in said
    monkeypatch.setenv(HANDED, "5")
    assert "--resume" not in (said := how_to_go_on(claim))
    assert "grid's own command (applications.compare) goes on from the last checkpoint" in said


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_from_the_last_checkpoint(
    tiny: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    flags = ("--save_steps", "2")
    straight, _ = run(tiny("lora", *flags, folder="straight"))
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "00000004" in path.name:
            write(path, content[:100])
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    asked = tiny("lora", *flags, folder="cut")
    assert main(words(asked.as_dict())) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "free some room, and --resume goes on from the last checkpoint" in said
    assert "Traceback" not in said
    monkeypatch.undo()
    folder = RunFolder(Path(str(asked.run.output_dir)))
    assert [path.name for path in folder.checkpoints()] == ["phase-0-round-00000002.pt"]
    resumed, _ = run(tiny("lora", *flags, "--resume", folder="cut"))
    assert untimed(resumed) == untimed(straight)


def test_the_data_may_not_change_between_a_kill_and_resuming(
    tiny: Run, tiny_data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "train.csv"
    file.write_text((tiny_data / "train.csv").read_text())
    flags = ("--train_file", str(file), "--max_steps", "2")
    run(tiny("lora", *flags))
    file.write_text(file.read_text().replace("cat", "dog", 1))
    with pytest.raises(UsageError, match=r"the data have changed .* the train split was 48 "):
        run(tiny("lora", *flags, "--resume"))
