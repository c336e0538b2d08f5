"""What a run says before, during and after training."""

import io
from typing import Any

import pytest
from tqdm import tqdm

from applications.data.splits import split_task
from applications.options.completion import completed
from applications.options.unused import unused_lines
from applications.pages.table import as_lines, table
from applications.runs.experiment import finetune
from applications.runs.phases import phases, prepare
from applications.runs.plan import cut_notes, plan_lines
from applications.runs.screen import Screen, in_words
from tests.applications.tiny_runs import FAMILY, Run

TWIG, BY_T1T2 = "  \u2514\u2500 ", ", responds by t1t2"


def screen(*, live: bool, total: int = 100) -> tuple[Screen, list[str], io.StringIO]:
    said: list[str] = []
    stream = io.StringIO()
    bar: Any = tqdm(total=total, file=stream, disable=not live, mininterval=0, ncols=200)
    return Screen(bar, "search", total, said.append), said, stream


@pytest.mark.parametrize(
    "flags, expected",
    [
        (
            ["--lower_steps", "2", "--hypergradient", "cg", "--hypergradient_products", "3"],
            [
                "search: 3 rounds of 4 gradient units and up to 4 Hessian products; in all 12 "
                "gradient units, 12 products",
                "  upper: 8 parameters, learning rate 0.01, 1 update a round",
                TWIG
                + "lower: 307 parameters, learning rate 0.01, 2 updates a round, responds by cg",
            ],
        ),
        (
            ["--cross_fitting", "2", "--hypergradient", "t1t2"],
            [
                "search: 6 rounds of 3 gradient units and up to 2 Hessian products; in all 18 "
                "gradient units, 12 products",
                "  upper: 8 parameters, learning rate 0.01, 1 update a round",
                TWIG + "lower_1: 307 parameters, learning rate 0.01, 1 update a round" + BY_T1T2,
                TWIG + "lower_2: 307 parameters, learning rate 0.01, 1 update a round" + BY_T1T2,
            ],
        ),
        (
            ["--control", "joint"],
            ["training: 6 updates of 315 parameters, learning rate 0.01; 6 gradient units"],
        ),
    ],
)
def test_a_plan_is_a_tree_with_what_the_engine_will_count(
    flags: list[str], expected: list[str], tiny: Run
) -> None:
    options = completed(tiny("bilora", *flags), FAMILY)
    task = FAMILY.load_task(options.data)
    work = prepare(options, FAMILY, task, split_task(task, options.data))
    phase = next(phases(work))
    assert plan_lines(phase, work)[: len(expected)] == expected


def test_the_plan_is_what_the_run_takes(tiny: Run) -> None:
    said: list[str] = []
    flags = ("--lower_steps", "2", "--hypergradient", "t1t2")
    summary = finetune(tiny("bilora", *flags), FAMILY, say=said.append)
    units, products = summary["num_gradients"], summary["num_hvps"]
    assert f"in all {units} gradient units, {products} products" in "\n".join(said)


def test_validation_and_selection_are_told_where_there_is_no_live_line(tiny: Run) -> None:
    said: list[str] = []
    flags = ("--eval_steps", "3", "--metric_for_best_model", "loss", "--max_eval_samples", "9")
    finetune(tiny("lora", *flags), FAMILY, say=said.append)
    assert "validation: 9 examples, every 3 updates; the best loss selects the step" in said
    lines = [line for line in said if "updates validation loss" in line]
    assert [line.split(" validation")[0] for line in lines] == [
        "training: after 3 updates",
        "training: after 6 updates",
    ]
    assert lines[0].endswith("best so far")


def test_a_live_line_holds_losses_validation_and_the_best() -> None:
    shown, said, stream = screen(live=True)
    shown.round(1, 0.1, {"upper": 0.25})
    shown.evaluated(1, {"loss": 0.5, "accuracy": None}, "accuracy", True)
    line = stream.getvalue().split("\r")[-1]
    assert "upper=0.250, validation=loss 0.5, accuracy undefined, best=after 1" in line
    shown.evaluated(2, {"loss": 0.75, "accuracy": 0.5}, "accuracy", False)
    line = stream.getvalue().split("\r")[-1]
    assert "validation=loss 0.75, accuracy 0.5, best=after 1" in line
    assert said == []


def test_the_rest_is_told_after_the_first_rounds_where_it_is_long() -> None:
    shown, said, _ = screen(live=False)
    for number, seconds in enumerate((50.0, 1.0, 3.0, 100.0), start=1):
        shown.round(number, seconds, None)
    # The first round is slower and left out: (1 + 3) / 2 s for each of 97.
    assert said == [
        "search: about 3 min for the 97 rounds left (2 s each; evaluations come on top)"
    ]
    shown, said, _ = screen(live=False)
    for number in (1, 2, 3):
        shown.round(number, 0.1, None)
    assert said == []


def test_durations_are_in_words() -> None:
    assert [in_words(s) for s in (8.4, 89, 600, 5400, 9000)] == [
        *("8 s", "89 s", "10 min", "1 h 30 min", "2 h 30 min"),
    ]


def test_a_table_for_the_screen_has_its_columns_under_their_heads() -> None:
    made = table("T", ["name", "n"], [["a", "10"], ["longer", "5"]])
    assert as_lines(made) == ["name     n", "a       10", "longer   5"]


@pytest.mark.parametrize(
    "method, flags, expected",
    [
        ("lora", (), None),
        ("lora", ("--control", "two_stage", "--upper_fraction", "0.3"), None),
        (
            "lora",
            ("--upper_learning_rate", "1e-2", "--lower_steps", "5"),
            "not used: --lower_steps, --upper_learning_rate; lora has one level",
        ),
        ("beam_lora", ("--hypergradient", "cg"), "not used: --hypergradient; beam_lora trains one"),
        ("bilora", ("--upper_learning_rate", "1e-2", "--lower_steps", "5"), None),
        ("lora", ("--upper_fraction", "0.3"), "not used: --upper_fraction; lora has one level"),
        ("lora", ("--norm_axis", "in"), "not used: --norm_axis; lora has no such option"),
        ("lora", ("--experts", "a"), "not used: --experts; lora has no such option"),
        ("bidora", ("--norm_axis", "in"), None),
        ("bilora", ("--norm_axis", "in"), "not used: --norm_axis; bilora has no such option"),
        (
            "bilora",
            ("--singular_values", "real", "--scale_by_rank"),
            "not used: --scale_by_rank; real values have no such sum",
        ),
        ("bilora", ("--num_masks", "2"), "not used: --num_masks; there are no masks"),
        ("bilora", ("--num_masks", "2", "--mask_rate", "0.5"), None),
        ("bilora", ("--retraining_steps", "9"), "not used: --retraining_steps; there is no retr"),
        ("bidora", ("--retraining_steps", "9"), None),
        (
            "bilora",
            ("--control", "joint", "--hypergradient", "cg"),
            "not used: --hypergradient; --control joint has no response",
        ),
        ("bilora", ("--hypergradient_products", "3"), "not used: --hypergradient_products; darts"),
        ("bilora", ("--hypergradient", "cg", "--hypergradient_products", "3"), None),
        (
            "bilora",
            ("--control", "same_data", "--upper_fraction", "0.5"),
            "not used: --upper_fraction; the training examples are not divided in two",
        ),
        (
            "lora",
            ("--lr_scheduler_type", "constant", "--warmup_ratio", "0.1"),
            "not used: --warmup_ratio; a constant schedule",
        ),
    ],
)
def test_options_that_nothing_reads_are_named(tiny, method, flags, expected):
    found = unused_lines(completed(tiny(method, *flags), FAMILY), FAMILY.command)
    assert len(found) == (expected is not None)
    assert expected is None or found[0].startswith(expected)


def test_all_weights_take_nothing_of_an_adapter(tiny):
    # The rank is that of every tiny run.
    found = unused_lines(completed(tiny("full", "--lora_alpha", "4"), FAMILY), FAMILY.command)
    assert found == ["not used: --lora_r, --lora_alpha; full trains all weights"]


@pytest.mark.parametrize("longest", [6, 32])
def test_training_rows_that_are_cut_are_counted(longest, tiny, tiny_data):
    options = completed(tiny("lora", "--max_seq_length", str(longest)), FAMILY)
    task = FAMILY.load_task(options.data)
    found = cut_notes(prepare(options, FAMILY, task, split_task(task, options.data)))
    rows = (tiny_data / "train.csv").read_text().splitlines()[1:]
    full = sum(len(row.split(",")[0].split()) + 2 >= longest for row in rows)
    assert (full > 0) == (longest == 6)
    assert [note.split(" (")[0] for note in found] == [
        f"{full} of 48 training rows fill all of 6 tokens"
    ] * (full > 0)
