import json
from pathlib import Path

import pytest

from applications.common.outputs import RunFolder, write_json, write_whole
from applications.common.report import Block, Table, page


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


def test_a_number_that_json_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})


def test_a_summary_with_other_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have the keys"):
        RunFolder(tmp_path).write_summary({"method": "lora"})


def test_a_log_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"round": 1})
    folder.log({"round": 2})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"rou')
    assert folder.metrics() == [{"round": 1}, {"round": 2}]
    folder.forget_after(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 1}\n'


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in (2, 4, 10):
        folder.save_checkpoint(number, {"round": number}, keep=2)
    assert [path.name for path in folder.checkpoints()] == [
        "round-00000004.pt",
        "round-00000010.pt",
    ]


def test_clearing_a_run_folder_keeps_files_of_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"round": 1})
    folder.save_checkpoint(1, {}, keep=1)
    (tmp_path / "notes.txt").touch()
    folder.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_texts_in_a_report_are_escaped() -> None:
    text = page(
        title="<script>alert(1)</script>",
        lead="a < b",
        tables=[Table("T", ["<h>"], [["<c>"]])],
        blocks=[Block("B", "</pre>")],
    )
    assert "<script>" not in text
    for escaped in ("&lt;script&gt;", "a &lt; b", "&lt;h&gt;", "&lt;c&gt;", "&lt;/pre&gt;"):
        assert escaped in text
