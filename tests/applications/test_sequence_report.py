"""The page of sequences of tasks, against numbers by hand."""

from pathlib import Path
from typing import Any

import pytest

from applications.sequences.report import curves, matrix, summary, write_page


def line(variant: str, order: int, seen: list[float], last_task: float) -> dict[str, Any]:
    """A finished sequence of two tasks."""
    return {
        "variant": variant,
        "order": order,
        "seen": seen,
        "last": seen[-1],
        "average": sum(seen) / 2,
        "forgetting": 0.25,
        "accuracies": [[0.9], [0.65, last_task]],
        "num_gradients": 10 + order,
        "seconds": 3.0,
        "settings": {"task_name": "topics", "num_tasks": 2},
    }


LINES = [
    line("sd_lora", 0, [0.9, 0.5], 0.4),
    line("sd_lora", 1, [0.8, 0.6], 0.4),
    line("lora", 0, [1.0, 0.3], 0.123),
    line("lora", 1, [0.9, 0.38], 0.4),
]


def test_the_summary_is_that_by_hand() -> None:
    lora, reference = ([entry.text for entry in row] for row in summary(LINES))
    assert lora[:5] == ["lora", "2", "34.0 \u00b1 5.7", "64.5 \u00b1 0.7", "25.0 \u00b1 0.0"]
    # -20 and -22: mean -21, deviation 1.414; t(0.975, 1) = 12.706.
    assert lora[5:] == ["-21.0 [-33.7, -8.3]", "10", "3"]
    assert reference[2:] == ["55.0 \u00b1 7.1", "70.0 \u00b1 0.0", "25.0 \u00b1 0.0", "", "10", "3"]
    assert [row[5].mark for row in summary(LINES)] == ["worse", ""]


def test_one_order_has_no_interval_and_no_reference_no_difference() -> None:
    assert [entry.text for entry in summary(LINES[::2])[0]][2:6] == [
        "30.0",
        "65.0",
        "25.0",
        "-20.0",
    ]
    assert summary(LINES[2:])[0][5].text == ""


def test_the_curves_are_means_over_the_orders() -> None:
    svg = curves(LINES).svg
    for said in ("lora\ntask 1: 95.0 %", "lora\ntask 2: 34.0 %", "sd_lora\ntask 2: 55.0 %"):
        assert f">{said}</title>" in svg


def test_a_matrix_has_a_row_after_each_task() -> None:
    assert [[entry.text for entry in row] for row in matrix(LINES[2]).rows] == [
        ["1", "90.0", "\u2013"],
        ["2", "65.0", "12.3"],
    ]


@pytest.mark.parametrize("lines, counted", [(LINES, "2 orders"), (LINES[:1], "1 order")])
def test_the_page_holds_every_sequence(tmp_path: Path, lines: Any, counted: str) -> None:
    write_page(tmp_path, lines)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "topics in 2 tasks" in text
    assert counted in text
    for one in lines:
        assert f"order {one['order']}, {one['variant']}" in text
