"""What a grid asks for: runs, their options by rank, and what is refused before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from applications.compare import main, part
from applications.comparison.grid import Grid, Run, made_grid, narrowed, planned, read_grid
from applications.comparison.settings import given
from applications.errors import UsageError

SMALL: dict[str, Any] = {"tasks": ["sst2"], "methods": ["lora", "bilora"]}


def grid(**changes: Any) -> Any:
    return made_grid(SMALL | changes, "the grid")


def one(**changes: Any) -> Run:
    (run,) = planned(grid(**{"methods": ["lora"]} | changes))
    return run


def test_the_runs_are_the_product_of_the_axes_with_the_seeds_outermost() -> None:
    runs = planned(grid(tasks=["sst2", "cr"], train_sizes=[300, "all"], seeds=2))
    assert [run.name for run in runs[:4]] == [
        "sst2/300/lora/seed0",
        "sst2/300/bilora/seed0",
        "sst2/all/lora/seed0",
        "sst2/all/bilora/seed0",
    ]
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * 2 * 2
    assert [run.seed for run in runs] == [0] * 8 + [1] * 8


def test_the_axes_become_the_options_of_the_run() -> None:
    run = one(train_sizes=[300], seeds=[7])
    assert run.resolved["task_name"] == "sst2"
    assert run.resolved["method"] == "lora"
    assert run.resolved["max_train_samples"] == 300
    assert run.resolved["seed"] == 7
    assert "max_train_samples" not in one(train_sizes=["all"]).options


def test_each_rank_of_options_wins_over_those_before_it() -> None:
    layers: list[dict[str, Any]] = [
        {},
        {"common": {"lora_r": 1}},
        {"tasks": {"sst2": {"lora_r": 2}}},
        {"methods": {"lora": {"lora_r": 3}}},
        {"overrides": [{"task": "sst2", "options": {"lora_r": 4}}]},
    ]
    merged: dict[str, Any] = {}
    for rank, layer in enumerate(layers):
        merged |= layer
        assert one(**merged).resolved["lora_r"] == (8 if rank == 0 else rank)
    twice = [*layers[-1]["overrides"], {"method": "lora", "options": {"lora_r": 5}}]
    assert one(**merged | {"overrides": twice}).resolved["lora_r"] == 5
    (run,) = planned(grid(**merged | {"methods": ["lora"]}), {"lora_r": 6})
    assert run.resolved["lora_r"] == 6


def test_softmax_values_are_compared_at_the_scale_of_lora_unless_told_otherwise() -> None:
    methods: dict[str, dict[str, Any]] = {
        "lora": {},
        "bilora": {},
        "own": {"method": "bilora", "scale_by_rank": False},
        "taken_back": {"method": "bilora", "scale_by_rank": None},
        "real": {"method": "bilora", "singular_values": "real"},
    }
    runs = planned(grid(methods=methods))
    scales = {run.variant: run.resolved["scale_by_rank"] for run in runs}
    assert scales == {
        "lora": False,
        "bilora": True,
        "own": False,
        "taken_back": False,
        "real": False,
    }


def test_an_override_reaches_the_runs_it_names_and_no_others() -> None:
    options = {"method": "bilora", "train_size": [300, 1000], "seed": 1, "options": {"lora_r": 4}}
    runs = planned(grid(train_sizes=[100, 300, 1000], seeds=2, overrides=[options]))
    reached = {run.name for run in runs if run.resolved["lora_r"] == 4}
    assert reached == {"sst2/300/bilora/seed1", "sst2/1000/bilora/seed1"}


def test_excluded_runs_are_left_out() -> None:
    exclude = [{"method": "bilora", "train_size": "all"}]
    names = [run.name for run in planned(grid(train_sizes=[300, "all"], exclude=exclude))]
    assert names == ["sst2/300/lora/seed0", "sst2/300/bilora/seed0", "sst2/all/lora/seed0"]


def test_a_variant_has_a_name_of_its_own_beside_its_method() -> None:
    run = one(methods={"soft": {"method": "bilora", "upper_learning_rate": "1e-2"}})
    assert (run.variant, run.resolved["method"]) == ("soft", "bilora")
    # YAML 1.1 takes 1e-2 for a text.
    assert run.resolved["upper_learning_rate"] == 0.01


def test_null_takes_an_option_of_a_lower_rank_back() -> None:
    common = {"common": {"lora_alpha": 32}}
    assert one(**common).resolved["lora_alpha"] == 32
    assert one(**common, methods={"lora": {"lora_alpha": None}}).resolved["lora_alpha"] == 16
    files = one(tasks={"mine": {"task_name": None, "data_dir": "folder"}})
    assert files.resolved["task_name"] is None


def test_another_spelling_of_an_option_is_the_option() -> None:
    assert one(common={"model": "minilm-x"}).options["model_name_or_path"] == "minilm-x"


def test_resplit_draws_the_splits_from_the_seed() -> None:
    assert [run.resolved["split_seed"] for run in planned(grid(seeds=3))] == [0] * 6
    assert [run.resolved["split_seed"] for run in planned(grid(seeds=2, resplit=True))] == [
        *(0, 0, 1, 1),
    ]


def test_a_known_task_runs_with_its_command_unless_another_is_named() -> None:
    tasks = {"sst2": {}, "wnut17": {}, "mine": {"task_name": "e2e"}, "other": {}}
    commands = ["nlu", "token_classification", "nlg", "nlu"]
    assert [r.command for r in planned(grid(tasks=tasks, methods=["lora"]))] == commands
    everywhere = made_grid({"command": "nlu", "tasks": ["wnut17"], "methods": ["lora"]}, "here")
    assert [r.command for r in planned(everywhere)] == ["nlu"]
    plain = narrowed(Grid(), tasks=["wnut17", "sst2"], methods=["lora"])
    assert [r.command for r in planned(plain)] == ["token_classification", "nlu"]


def test_each_task_runs_with_its_own_command_and_its_own_options() -> None:
    tasks = {"sst2": {}, "wnut17": {"command": "token_classification"}}
    assert [run.command for run in planned(grid(tasks=tasks, methods=["lora"]))] == [
        *("nlu", "token_classification"),
    ]
    writer = {"tasks": {"e2e": {"command": "nlg", "num_beams": 5}}}
    assert one(**writer).resolved["num_beams"] == 5
    with pytest.raises(UsageError, match="num_beams"):
        one(tasks={"sst2": {"num_beams": 5}})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"comon": {}}, "unknown key 'comon': did you mean common?"),
        ({"common": {"lerning_rate": 1}}, r"'--lerning_rate': did you mean learning_rate\?"),
        ({"common": {"learning_rate": "fast"}}, "common: argument --learning_rate.*'fast'"),
        ({"common": {"learning_rate": -1}}, r"run sst2/all/lora/seed0: .*learning_rate.*-1"),
        ({"common": {"lerning_rate": None}}, "did you mean learning_rate"),
        ({"common": {"seed": 3}}, "'seed' is decided by the grid; use seeds"),
        ({"common": {"method": "lora"}}, "'method' belongs to a task or a method"),
        ({"methods": {"soft": {"singular_values": "softmax"}}}, "soft/seed0: .*--method.*'soft'"),
        ({"methods": {"x": {"method": "lora", "orthogonality": 1}}}, "x/seed0: .*orthogonality"),
        ({"tasks": {"mine": {"task_name": None}}}, "mine/.*no data"),
        ({"tasks": {"sst2": {"command": "nlq"}}}, "unknown command 'nlq': did you mean nlg?"),
        ({"train_sizes": [300, 300]}, "each once"),
        ({"train_sizes": [1]}, "at least 2"),
        ({"seeds": 0}, "at least one seed"),
        ({"seeds": "x"}, "whole number.*'x'"),
        ({"overrides": [{"task": "sst", "options": {}}]}, "no task 'sst': did you mean sst2?"),
        ({"overrides": [{"options": {"lora_r": 2}}]}, "at least one of task"),
        ({"exclude": [{"method": "lora"}, {"method": "bilora"}]}, "no runs are left"),
        ({"reference": "dora"}, "reference 'dora' is not among"),
        ({"tasks": {"a/b": {}, "a-b": {}}}, "cannot be a folder beside"),
        ({"tasks": {}}, "no tasks"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        planned(grid(**changes))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_grid_is_read_from_a_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"grid{suffix}"
    path.write_text(
        json.dumps({"tasks": {"sst2": None}, "methods": {"lora": None}, "train_sizes": [300]})
    )
    assert [run.name for run in planned(read_grid(path))] == ["sst2/300/lora/seed0"]
    path.write_text("[1, 2")
    with pytest.raises(UsageError, match="cannot be read"):
        read_grid(path)


def test_the_command_line_chooses_from_the_file_and_replaces_sizes_and_seeds() -> None:
    found = narrowed(
        grid(methods={"lora": {"lora_r": 4}, "bilora": {}}),
        methods=["lora"],
        sizes=["100", "all"],
        seed_words=["3", "5"],
    )
    runs = planned(found)
    assert [run.name.partition("/")[2] for run in runs] == [
        *("100/lora/seed3", "all/lora/seed3", "100/lora/seed5", "all/lora/seed5"),
    ]
    assert {run.resolved["lora_r"] for run in runs} == {4}
    with pytest.raises(UsageError, match=r"--methods: unknown name 'lor': did you mean lora\?"):
        narrowed(grid(), methods=["lor"])


def test_the_command_line_alone_names_a_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--tasks", "sst2,cr", "--methods", "lora", "dora", "--seeds", "2"]
    words += ["--train_sizes", "100", "--max_steps", "3", "--out", str(out), "--dry_run"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0] == "sst2/100/lora/seed0  to run"
    assert not out.exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--lerning_rate", "1"], "did you mean learning_rate?"),
        (["--method", "lora"], "use --methods"),
        (["--seed", "1"], "use seeds"),
        (["--shard", "3/2"], "--shard: must be I/N with 1 <= I <= N, got '3/2'"),
        (["--processes", "0"], "--processes: must be at least 1, got 0"),
        (["--overwrit"], "--overwrit"),
    ],
)
def test_the_command_refuses_with_status_2_and_writes_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["--tasks", "sst2", "--methods", "lora", "--out", str(out), *words]
    assert main(asked) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_flags_are_values_of_the_right_types_under_their_full_names() -> None:
    flags = ["--model", "m", "--max_steps=3", "--learning-rate", "1e-3", "--text_columns", "a", "b"]
    assert given(flags, "here") == {
        "model_name_or_path": "m",
        "max_steps": 3,
        "learning_rate": 1e-3,
        "text_columns": ["a", "b"],
    }


def test_shards_partition_the_runs_and_keep_compared_runs_together() -> None:
    runs = planned(grid(tasks=["sst2", "cr", "trec"], train_sizes=[100, 300], seeds=2))
    shards = [part(runs, f"{number}/5") for number in range(1, 6)]
    assert sorted(run.name for one in shards for run in one) == sorted(run.name for run in runs)
    for one_shard in shards:
        for cell in {run.cell for run in one_shard}:
            assert {run.variant for run in one_shard if run.cell == cell} == {"lora", "bilora"}
    cells = [len({run.cell for run in one_shard}) for one_shard in shards]
    assert max(cells) - min(cells) <= 1


def test_more_seeds_and_methods_leave_a_shard_what_it_had() -> None:
    few = part(planned(grid(seeds=2)), "1/2")
    more = part(planned(grid(seeds=3, methods=["lora", "dora", "bilora"])), "1/2")
    assert {run.name for run in few} <= {run.name for run in more}
