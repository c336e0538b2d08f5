"""The plan of the grid of sources: which runs, at which rates, and what its tables say."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from applications.weighting.controls import Comparison
from applications.weighting.folds import folds
from applications.weighting.heads import Examples
from applications.weighting.search import Search, Sources
from benchmarks.reweight import finetuned as fine
from benchmarks.reweight import generation, labelling_functions
from benchmarks.reweight import on_features as cells
from benchmarks.reweight.costs import row as cost_row
from benchmarks.reweight.generation import POISONED, SIZES, displaced, once, weights
from benchmarks.reweight.on_features import about, area
from benchmarks.reweight.page import bold, costs, finetuned, on_features, scores, told
from benchmarks.reweight.pairs import Shards
from benchmarks.reweight.plan import (
    METHODS,
    RATES,
    SEEDS,
    TUNING_SEEDS,
    Run,
    best_rates,
    expected_seconds,
    finetuning,
    missing,
    tuning,
)
from benchmarks.reweight.rows import append, read
from benchmarks.reweight.running import run_all
from benchmarks.reweight.shards import draw
from benchmarks.reweight.tables import markdown
from benchmarks.reweight.training import Took, Trained

PAIR = ("two_stage", "weights")


def tried(method: str, rate: float, seed: int, metric: float, seconds: float = 1.0) -> Any:
    run = Run("sst2_cr", "minilm_lora", 60, seed, method, rate)
    return {**run.key, "test_metric": metric, "cpu_seconds": seconds}


def row(run: Run) -> Any:
    return {**run.key, "test_metric": 0.5, "cpu_seconds": 60.0}


def test_every_method_has_the_same_tries() -> None:
    runs = list(tuning("sst2_cr", (60,), (100, 101), METHODS))
    tries = [[(r.seed, r.learning_rate) for r in runs if r.method == m] for m in METHODS]
    assert all(each == tries[0] for each in tries)
    assert len(tries[0]) == 2 * len(RATES)


def test_the_best_rate_is_chosen_on_seeds_that_all_methods_ended() -> None:
    """On seed 101, where two_stage prefers the last rate by far, one run is missing."""
    rows = [tried(m, rate, 100, 0.8 - 0.1 * n) for m in PAIR for n, rate in enumerate(RATES)]
    rows += [tried("two_stage", rate, 101, 0.1 + 0.4 * n) for n, rate in enumerate(RATES)]
    rows += [tried("weights", rate, 101, 0.1 + 0.4 * n) for n, rate in enumerate(RATES[:-1])]
    assert best_rates(rows, "sst2_cr", PAIR) == dict.fromkeys(PAIR, RATES[0])
    rows.append(tried("weights", RATES[-1], 101, 0.9))
    assert best_rates(rows, "sst2_cr", PAIR) == dict.fromkeys(PAIR, RATES[-1])


def test_without_all_tries_there_is_no_best_rate() -> None:
    rows = [tried("weights", RATES[0], 100, 0.9)]
    with pytest.raises(SystemExit, match="run the part tune first"):
        best_rates(rows, "sst2_cr", ["weights"])


def test_runs_with_a_row_are_not_run_again(tmp_path: Path) -> None:
    file, asked, said = tmp_path / "rows.jsonl", [], []
    runs = list(finetuning("sst2_cr", (60,), (0, 1), PAIR, dict.fromkeys(PAIR, 1e-3)))

    def train(run: Run) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(run)
        return row(run)

    with pytest.raises(KeyboardInterrupt):
        run_all(runs, file, train, say=said.append)
    assert [line.split(":")[0] for line in said[1:]] == [
        f"{n}/4 sst2_cr, 60 labels, seed {seed}, {method}, rate 0.001"
        for n, seed, method in ((1, 0, "two_stage"), (2, 0, "weights"), (3, 1, "two_stage"))
    ]
    run_all(runs, file, row, say=said.append)
    assert said[-2] == "1 of 4 runs are left; CPU time: about 1 min"
    assert [Run(**{k: r[k] for k in run.key}) for r, run in zip(read(file), runs, strict=True)] == (
        runs
    )


def test_no_run_is_begun_that_would_end_after_the_limit(tmp_path: Path) -> None:
    """Each takes a minute, so that none fits into half of one, once that is known."""
    file, said = tmp_path / "rows.jsonl", []
    runs = tuning("sst2_cr", (60,), (100,), PAIR)
    run_all(runs, file, row, minutes=0.5, say=said.append)
    assert len(read(file)) == 1
    assert said[-1] == "stopped before the limit of 0.5 minutes; the same command goes on"


def test_the_time_left_is_that_of_each_method() -> None:
    rows = [tried("two_stage", 1e-3, 0, 0.5, seconds) for seconds in (10.0, 20.0)]
    rows.append(tried("weights", 1e-3, 0, 0.5, 60.0))
    runs = list(finetuning("sst2_cr", (60,), (5,), METHODS[:3], dict.fromkeys(METHODS, 1e-3)))
    assert expected_seconds(runs, rows) == pytest.approx(15 + 60 + 30)
    assert expected_seconds(runs, []) is None


def test_one_seed_has_a_difference_and_no_interval() -> None:
    rows = [tried("helpful", 1e-3, 0, 0.8), tried("two_stage", 1e-3, 0, 0.7)]
    assert scores(rows).splitlines()[2:] == [
        "| **helpful sources** | 0.001 | 1 | 80.0 |  |  | 1 |",
        "| two-stage | 0.001 | 1 | 70.0 | +10.0 |  | 1 |",
    ]


def test_costs_are_told_over_plain_training() -> None:
    plain = {"way": "plain", "fine_tuning": 100.0, "finish": 0.0, "whole": 100.0, "gradients": 300}
    ours = {"way": "features", "fine_tuning": 100.0, "finish": 4.0, "search": 6.0, "gradients": 312}
    rows = [plain, {**ours, "embedding": 20.0, "whole": 130.0}]
    assert costs(rows).splitlines()[2:] == [
        "| plain |  |  | 100 | 0 | 100 | 1.00 | 1.00 |",
        "| features | 20 | 6 | 100 | 4 | 130 | 1.30 | 1.04 |",
    ]


@pytest.mark.parametrize("method", ["two_stage", "uniform", "oracle"])
def test_weights_of_sources_of_texts_have_a_mean_of_one_a_text(method: str) -> None:
    given = weights(method, SIZES)
    assert given is not None
    whole = sum(SIZES.values())
    shares = {name: weight * SIZES[name] / whole for name, weight in given.items()}
    assert sum(shares.values()) == pytest.approx(1)
    if method == "uniform":
        assert shares == pytest.approx(dict.fromkeys(SIZES, 1 / len(SIZES)))
    assert {name for name in SIZES if shares[name] == 0} == (
        set(POISONED) if method == "oracle" else set()
    )


def test_no_meaning_keeps_its_text() -> None:
    pairs = [(f"name : {n // 2}", f"text {n}") for n in range(10)]
    true = {text: meaning for meaning, text in pairs}
    poisoned = displaced(pairs)
    assert sorted(text for _, text in poisoned) == sorted(true)
    assert all(true[text] != meaning for meaning, text in poisoned)


def test_the_first_text_of_each_meaning_is_taken() -> None:
    assert once([("a", "1"), ("b", "2"), ("a", "3")]) == [("a", "1"), ("b", "2")]


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from benchmarks.reweight.__main__ import parser; parser(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MADE = Shards("made", "a", "a", (0.0, 0.5, 1.0), 10, 7)


def drawn(task: Shards, labels: int, seed: int = 0) -> Any:
    """Of 40 training examples and ten more, in three classes."""
    classes = [n % 3 for n in range(50)]
    return draw(task, classes, classes, num_train=40, labels=labels, seed=seed)


def test_shards_are_wrong_at_their_rates_and_apart_from_the_target_and_the_test() -> None:
    found = drawn(MADE, 5)
    assert len(set(found.sources.tolist())) == 30
    assert found.truth.tolist() == [n % 3 for n in found.sources.tolist()]
    wrong = [(found.said != found.truth)[found.shard == s].sum().item() for s in range(3)]
    assert wrong == [0, 5, 10]
    assert set(found.said.tolist()) == {0, 1, 2}
    assert set(found.target.tolist()).isdisjoint(found.sources.tolist())
    assert found.target_labels.tolist() == [n % 3 for n in found.target.tolist()]
    assert found.test.tolist() == list(range(40, 47))
    assert drawn(MADE, 3).target.tolist() == found.target.tolist()[:3]
    assert drawn(MADE, 3, seed=1).target.tolist() != found.target.tolist()[:3]


def test_of_two_sets_the_target_and_the_test_are_apart() -> None:
    found = drawn(replace(MADE, target="b"), 43)
    assert len({*found.target.tolist(), *found.test.tolist()}) == 50
    assert found.test_labels.tolist() == [n % 3 for n in found.test.tolist()]


def test_the_area_is_that_of_a_clean_source_having_the_larger_weight() -> None:
    rates = torch.tensor([0.0, 0.5, 0.0, 0.9, 0.5])
    weights = torch.tensor([1.0, 1.0, 0.4, 0.5, 0.2]).double()
    found = about(weights, rates)
    assert found["weights"] == {"0.0": 0.7, "0.5": 0.6, "0.9": 0.5}
    assert found["auc"] == pytest.approx(roc_auc_score(rates == 0, weights), abs=1e-4)


def test_the_oracle_is_given_the_shares_of_right_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """And every method the texts of the shards, and a target that no shard holds."""
    classes, texts = [n % 3 for n in range(50)], [str(n) for n in range(50)]
    monkeypatch.setattr(cells, "labelled", lambda *args, **more: (texts, classes, 40))
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(50, 4, generator=generator)
    monkeypatch.setattr(cells, "features", lambda name, texts: known)
    given, test, made = cells.cell(MADE, Path(), labels=6, seed=0)
    assert given.right is not None
    assert given.right.tolist() == [1.0, 0.5, 0.0]
    assert given.sources.sizes.tolist() == [10, 10, 10]
    assert given.sources.examples.answers.argmax(1).tolist() == made.said.tolist()
    assert (len(given.target), len(test)) == (6, 7)
    # Features come with their own example: inner products do not depend on the axes' signs.
    everything = torch.cat([known[made.sources], known[made.target]]).double()
    centred = everything - everything.mean(0)
    scale = centred.square().sum(1).mean()
    both = torch.cat([given.sources.examples.features, given.target.features])[:, :-1]
    torch.testing.assert_close(both @ both.T, centred @ centred.T / scale)


def test_costs_are_scaled_from_the_updates_that_were_made_and_the_finish_is_not() -> None:
    """Rounds of five make 15 updates of the ten that were asked for: 20 times are 300."""
    phases = (Took(15, 30, 6, 2.0), Took(4, 4, 0, 1.5))
    found = cost_row("online", Trained(None, None, None, phases), 10)  # type: ignore[arg-type]
    assert found["fine_tuning"] == pytest.approx(40.0)
    assert found["finish"] == 1.5
    assert found["gradients"] == 36 * 20 + 4
    assert found["whole"] == pytest.approx(41.5)


def test_a_run_at_another_rate_is_still_to_be_run() -> None:
    runs = list(finetuning("sst2_cr", (60,), (0,), ("weights",), {"weights": 2e-3}))
    assert missing(iter(runs), [tried("weights", 1e-3, 0, 0.5)]) == runs
    assert missing(iter(runs), [tried("weights", 2e-3, 0, 0.5)]) == []


def test_rates_are_tried_on_seeds_of_their_own_and_task_by_task() -> None:
    assert set(SEEDS).isdisjoint(TUNING_SEEDS)
    rows = [tried("weights", rate, 100, 0.1 * n) for n, rate in enumerate(RATES)]
    others = [
        {**tried("weights", rate, 100, 0.9 - 0.1 * n), "task": "other"}
        for n, rate in enumerate(RATES)
    ]
    assert best_rates([*rows, *others], "sst2_cr", ["weights"]) == {"weights": RATES[-1]}
    more = [{**tried("weights", rate, 100, 0.9 - n), "labels": 200} for n, rate in enumerate(RATES)]
    # Means of .45, 0 and -.45: each number of labels is a try of its own.
    assert best_rates([*more, *rows], "sst2_cr", ["weights"]) == {"weights": RATES[0]}


def test_the_table_of_fine_tuned_models_has_the_runs_at_the_best_rates_alone() -> None:
    tuned = [tried(m, rate, 100, 0.5 + 0.1 * n) for m in PAIR for n, rate in enumerate(RATES)]
    best, other = RATES[-1], RATES[0]
    rows = [tried(m, best, 0, value) for m, value in zip(PAIR, (0.7, 0.8), strict=True)]
    rows += [tried("two_stage", other, seed, 0.1) for seed in (0, 1)]
    lines = finetuned(rows, tuned).splitlines()
    assert lines[0] == "`sst2_cr`, 60 labels, seed 0:"
    assert [line.split(" | ")[1:4] for line in lines[4:6]] == [
        [f"{best:g}", "1", "70.0"],
        [f"{best:g}", "1", "80.0"],
    ]
    assert lines[6:] == ["", "Not shown: 2 runs of `sst2_cr` at other rates."]


def test_a_table_says_which_way_its_differences_are() -> None:
    values = {"weights": 0.8, "two_stage": 0.7, "union": 0.5}
    rows = [{**tried(m, 1e-3, 0, v), "auc": v} for m, v in values.items()]
    assert markdown(rows).splitlines()[4:] == [
        "| weights | 1 | 80.0 |  | +10.0 | 0.80 | 1.0 |",
        "| two_stage | 1 | 70.0 | +10.0 |  | 0.70 | 1.0 |",
        "| union | 1 | 50.0 | +30.0 | -20.0 | 0.50 | 1.0 |",
    ]


@pytest.mark.parametrize(
    "method, labels, finish", [("union", 60, 0), ("two_stage", 60, 30), ("online", 200, 39)]
)
def test_all_but_the_union_finish_on_the_target(
    method: str, labels: int, finish: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of batches of 16, at least 30 updates; the union has the target among it."""
    asked: dict[str, Any] = {}

    def trained(options: Any, family: Any, gathered: Any, target: Any, weights: Any) -> None:
        asked.update(options=options, gathered=gathered, weights=weights)
        raise InterruptedError

    monkeypatch.setattr(fine, "trained", trained)
    shard = Dataset.from_dict({"text": ["x"] * 4, "label": [0] * 4})
    target = Dataset.from_dict({"text": ["y"] * labels, "label": [1] * labels})
    given = SimpleNamespace(
        even=torch.ones(2).double(), target=SimpleNamespace(answers=torch.zeros(1, 2))
    )
    run = Run("sst2_cr", "minilm_lora", labels, 0, method, 2e-3)
    with pytest.raises(InterruptedError):
        fine.fine_tuned(run, given, ([shard, shard], target, target))  # type: ignore[arg-type]
    assert asked["options"].weighting.target_steps == finish
    assert asked["options"].run.learning_rate == 2e-3
    names = ["0", "1", *(["target"] if method == "union" else [])]
    assert asked["gathered"].names == names
    assert asked["weights"] == (None if method == "online" else dict.fromkeys(names, 1.0))


def test_agreeing_examples_are_those_that_a_model_of_the_target_predicts() -> None:
    signs = torch.tensor([1.0, 1, -1, -1, 1, -1]).double()
    features = torch.stack([signs, torch.ones(6).double()], 1)

    def examples(labels: list[int]) -> Examples:
        return Examples(features, torch.nn.functional.one_hot(torch.tensor(labels), 2).double())

    target = examples([1, 1, 0, 0, 1, 0])
    members = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 2).double()
    given = Comparison(
        Sources(examples([1, 0, 0, 1, 0, 0]), members), target, folds(target, 2, seed=0), Search()
    )
    for source, rows, agreed in ((0, list("abcd"), list("ac")), (1, list("ef"), ["f"])):
        data = Dataset.from_dict({"text": rows})
        assert fine.agreeing(given, source, data)["text"] == agreed


def test_labelling_functions_do_not_see_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    train = [
        {"text": str(n), "label": n % 6, "votes": [[0, n % 6], [1, 0]][: n % 3]} for n in range(30)
    ]
    valid = [{"text": "v", "label": 0}] * 4
    splits = {"train": train, "valid": valid}
    monkeypatch.setattr(labelling_functions, "read", lambda folder, split: splits[split])
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        labelling_functions,
        "features",
        lambda name, texts: torch.randn(len(texts), 3, generator=generator),
    )
    seen: list[Comparison] = []

    def keep(given: Comparison) -> Any:
        seen.append(given)
        return SimpleNamespace(weights=None, head=torch.zeros(4, 6).double())

    monkeypatch.setattr(labelling_functions, "CONTROLS", {"kept": keep})
    done = {"weights", "majority_vote", "dawid_skene"}
    list(labelling_functions.rows(Path(), labels=8, seed=3, done=done))
    (given,) = seen
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3)).tolist()
    voted = [vote for n in order[8:] for vote in train[n]["votes"]]
    assert len(given.sources.examples) == len(voted)
    assert given.sources.sizes[:2].tolist() == [
        sum(function == k for function, _ in voted) for k in (0, 1)
    ]
    assert given.right is not None
    assert given.right[0] == 1
    zeros = [n % 6 == 0 for n in order[8:] if n % 3 == 2]
    assert given.right[1].item() == pytest.approx(sum(zeros) / len(zeros))
    assert given.target.answers.argmax(1).tolist() == [n % 6 for n in order[:8]]


def test_target_and_sources_of_texts_share_no_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "devset.csv": [(f"name : {n // 2}", f"text {n}") for n in range(800)],
        "testset_w_refs.csv": [(f"tested : {n // 3}", f"test {n}") for n in range(600)],
    }
    monkeypatch.setattr(generation, "read_pairs", lambda file: files[file.name])
    monkeypatch.setattr(
        generation, "questions", lambda folder: [("kind : x", f"what {n}") for n in range(200)]
    )
    monkeypatch.setattr(generation, "encoded", lambda rows, *rest: [{"input_ids": [0]}] * len(rows))
    empty: Any = None
    sources, target, test = generation.drawn(Path(), 40, 0, empty, empty)
    assert {name: len(rows) for name, rows in sources.items()} == SIZES
    assert (len(target), len(test)) == (40, generation.NUM_TEST)
    meanings = [meaning for rows in sources.values() for meaning in rows["source"]]
    assert set(meanings).isdisjoint(target["source"])
    assert len(set(target["source"])) == 40
    assert all(meaning.startswith("tested") for meaning in test["source"])
    pairs = {text: meaning for meaning, text in files["devset.csv"]}
    for name in SIZES:
        rows = zip(sources[name]["source"], sources[name]["references"], strict=True)
        true = [pairs.get(text) == meaning for meaning, (text,) in rows]
        assert all(true) if name.startswith("clean") else not any(true)


def test_sources_alike_have_the_weight_one_and_others_the_shares_they_are_named_for() -> None:
    assert weights("two_stage", SIZES) == pytest.approx(dict.fromkeys(SIZES, 1.0))
    assert weights("online", SIZES) is None


def test_the_area_is_that_of_mann_and_whitney() -> None:
    scores_, wrong = torch.tensor([0.9, 0.5, 0.5, 0.1, 0.7]), torch.tensor([0, 0, 1, 1, 1]) > 0
    counted = mannwhitneyu(scores_[~wrong], scores_[wrong]).statistic / 6
    assert area(scores_, wrong) == pytest.approx(counted, abs=1e-4)
    assert area(-scores_, wrong) == pytest.approx(1 - counted, abs=1e-4)


def test_the_table_of_features_has_ours_first_and_pairs_seeds() -> None:
    values = {"helpful": (0.8, 0.9), "two_stage": (0.7, 0.85), "oracle": (0.95, 0.9)}
    rows = [
        {"task": "a", "route": "features", "labels": 24, "seed": s, "method": m, "test_metric": v}
        for m, both in values.items()
        for s, v in enumerate(both)
    ]
    other = {**rows[2], "route": "minilm_lora", "test_metric": 0.0}
    lines = on_features([*rows, other], {("a", 24): "24 labels"}).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| **helpful sources**", "85.0"],
        ["| the oracle's sources", "92.5"],
        ["| two-stage", "77.5"],
    ]
    assert "+7.5 (" in lines[2]  # 10 and 5 points, of the same seeds
    assert "-7.5 (" in lines[1]  # -15 and 0


@pytest.mark.parametrize(
    "text, expected",
    [
        ("+2.0 (+1.0 to +3.0)", "**+2.0** (+1.0 to +3.0)"),
        ("-2.0 (-3.0 to -1.0)", "**-2.0** (-3.0 to -1.0)"),
        ("+2.0 (-1.0 to +3.0)", "+2.0 (-1.0 to +3.0)"),
        ("+2.0", "+2.0"),
        ("", ""),
    ],
)
def test_a_difference_is_bold_where_its_interval_leaves_zero_out(text: str, expected: str) -> None:
    assert bold(text) == expected


def test_a_score_has_its_mean_area_in_each_cell() -> None:
    rows = [
        {"task": "sst2_cr", "labels": labels, "score": "pull", "area": value}
        for labels, value in ((24, 0.9), (24, 0.8), (60, 1.0))
    ]
    first = told(rows).splitlines()[2].split(" | ")
    assert first[1:4] == ["0.85", "1.00", ""]


@pytest.mark.parametrize(
    "method, form, hypergradient", [("online", "softmax", "t1t2"), ("oracle", "helpful", "darts")]
)
def test_the_online_route_has_a_form_of_its_own_and_exact_products(method, form, hypergradient):
    options = fine.settings(Run("sst2_cr", "minilm_lora", 60, 0, method, 2e-3), 30)
    assert (options.weighting.form, options.levels.hypergradient) == (form, hypergradient)
    assert (options.weighting.target_steps, options.learning_rate) == (30, 2e-3)


def test_a_row_after_one_that_was_cut_off_has_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append({"seed": 0}, file)
    with file.open("a") as stream:
        stream.write('{"seed": 1, "met')
    append({"seed": 2}, file)
    assert read(file) == [{"seed": 0}, {"seed": 2}]
