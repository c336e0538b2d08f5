"""The grid of default learning rates: what is tried, and what its tables say."""

from applications.methods import METHODS
from benchmarks.defaults.grid import VARIANTS, checking, tuning
from benchmarks.defaults.tables import of_model, sizes, tried


def test_every_method_is_tried() -> None:
    assert {variant.flags[1] for variant in VARIANTS.values()} == set(METHODS)


def test_the_check_begins_with_the_defaults_and_goes_on_beside_them() -> None:
    first, *beside = checking("minilm", ["mpqa"], ["full"], [0])
    assert first.flags() == ["--method", "full"]
    rates = [cell.flags()[-1] for cell in beside]
    default = METHODS["full"].learning_rate
    assert rates == [f"--learning_rate={factor * default:g}" for factor in (0.4, 2.5)]
    assert {cell.split for cell in (first, *beside)} == {"test"}
    assert {cell.split for cell in tuning("minilm", ["sst2"], ["lora"], [0, 1])} == {"validation"}


def test_a_table_says_how_far_a_rate_is_from_the_best_on_its_worst_set() -> None:
    default = METHODS["lora"].learning_rate

    def row(task: str, rate: float | None, seed: int, metric: float) -> dict[str, object]:
        known = {"variant": "lora", "task": task, "split": "validation", "seed": seed}
        return known | {"learning_rate": rate, "used": [default, None], "metric": metric}

    rows = [
        row("sst2", None, 0, 0.8),
        row("sst2", None, 1, 0.6),
        row("sst2", 1.0, 0, 0.75),
        row("trec", None, 0, 0.9),
        row("trec", 1.0, 0, 0.5),
    ]
    lines = tried(rows, ("sst2", "trec"), "validation").splitlines()
    assert lines[2:] == [
        f"| `lora` | **{default:g}** | 70.0 | 90.0 | -5.0 |",
        "| `lora` | 1 | 75.0 | 50.0 | -40.0 |",
    ]


def test_models_have_tables_of_their_own() -> None:
    known = {"variant": "lora", "task": "trec", "split": "validation", "learning_rate": 1.0}
    rows = [{**known, "model": "minilm", "metric": 0.9}, {**known, "model": "other", "metric": 0.5}]
    assert tried(of_model(rows, "other"), ("trec",), "validation").splitlines()[2:] == [
        "| `lora` | 1 | 50.0 |  |"
    ]
    assert tried(of_model(rows, "third"), ("trec",), "validation") == "No run yet."


def test_the_sizes_of_hypergradients_are_their_extremes_over_the_runs() -> None:
    rows = [
        {"variant": "bilora", "hypergradient": [1e-9, 2e-6, 1e-3], "moved": 0.1},
        {"variant": "bilora", "hypergradient": [1e-7, 4e-6, 1e-4], "moved": 0.3},
    ]
    assert sizes(rows).splitlines()[2:] == ["| `bilora` | 2 | 1e-09 | 3e-06 | 1e-03 | 0.200 |"]
