import json
import os
from pathlib import Path

import pytest

from applications.pages.page import Section, page
from applications.pages.table import Table, entries
from applications.pages.writing import write_json, write_whole
from applications.runs.mark import Mark
from applications.runs.outputs import RunFolder


def test_a_write_that_fails_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})

    def broken(draft: Path) -> None:
        draft.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, broken)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_an_older_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for name in ("old", "new"):

        def fill(draft: Path, name: str = name) -> None:
            draft.mkdir()
            (draft / name).touch()

        write_whole(path, fill)
    assert [file.name for file in path.iterdir()] == ["new"]


def test_a_file_never_takes_the_place_of_a_folder_nor_a_folder_that_of_a_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(IsADirectoryError, match="something of another kind is there"):
            write_json(tmp_path / name, {"a": 1})
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "file", lambda draft: draft.mkdir())
    assert (tmp_path / "folder" / "kept").exists()
    assert (tmp_path / "file").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_number_that_json_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})


def test_a_summary_with_other_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have the keys"):
        RunFolder(tmp_path).write_summary({"method": "lora"})


def test_a_log_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lines = [{"phase_index": 0, "round": 1}, {"phase_index": 0, "round": 2}]
    for line in lines:
        folder.log(line)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"rou')
    assert folder.metrics() == lines
    folder.forget_after(0, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"phase_index": 0, "round": 1}\n'


def test_a_resumed_phase_forgets_its_own_lines_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for phase in (0, 1, 2):
        for number in (1, 2):
            folder.log({"phase_index": phase, "round": number})
    folder.forget_after(1, 1)
    kept = [(line["phase_index"], line["round"]) for line in folder.metrics()]
    assert kept == [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2)]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in (2, 4, 10):
        folder.save_checkpoint(1, number, {"round": number}, keep=2)
    folder.save_checkpoint(0, 7, {}, keep=1)
    assert [path.name for path in folder.checkpoints(1)] == [
        "phase-1-round-00000004.pt",
        "phase-1-round-00000010.pt",
    ]
    assert len(folder.checkpoints()) == 3


def test_clearing_a_run_folder_keeps_files_of_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({})
    folder.log({"round": 1})
    folder.save_checkpoint(0, 1, {}, keep=1)
    (tmp_path / "notes.txt").touch()
    folder.clear()
    assert folder.checkpoints()  # nothing says that it is a run's
    Mark("nlu", "lora", "tiny", "0", {}, 1, "cpu").write(tmp_path)
    folder.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mark.json", "notes.txt"]


def test_a_folder_that_is_no_run_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    RunFolder(tmp_path).clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "model"]


def test_texts_in_a_report_are_escaped() -> None:
    text = page(
        title="<script>alert(1)</script>",
        lead="a < b",
        sections=[Section("S", tables=[Table("T", ["<h>"], [entries("<c>")])], blocks=["</pre>"])],
    )
    assert text.count("<script>") == 1  # the page's own
    for escaped in ("&lt;script&gt;", "a &lt; b", "&lt;h&gt;", "&lt;c&gt;", "&lt;/pre&gt;"):
        assert escaped in text
