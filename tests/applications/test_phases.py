"""What each control, retraining and selection trains, on a tiny random BERT."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import blo
from adapters import masking, retrain_config
from applications.data.splits import split_task
from applications.errors import UsageError
from applications.options.completion import completed
from applications.runs import closing, report
from applications.runs.experiment import scorer
from applications.runs.phases import phases, prepare
from tests.applications.tiny_runs import FAMILY, Run, logged, reloaded, run, trained

BI_LEVEL = ("bilora", "bidora", "autolora")
UPPER = ("lora_diagonal", "lora_magnitude_vector")


def values(folder: Path, name: str = "adapter") -> dict[str, Tensor]:
    return load_file(trained(folder, name) / "adapter_model.safetensors")


def upper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v for n, v in tensors.items() if any(part in n for part in UPPER)}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def work_of(options: Any) -> Any:
    options = completed(options, FAMILY)
    task = FAMILY.load_task(options.data)
    return prepare(options, FAMILY, task, split_task(task, options.data))


def test_learned_weight_decay_is_trained_above_and_added_below(tiny: Run) -> None:
    # The scale keeps the hypergradient above the epsilon of AdamW.
    flags = ("--initial_weight_decay", "0.5", "--hypergradient_scale", "1")
    options = tiny("lora_weight_decay", *flags)
    phase = next(phases(work_of(options)))
    upper, lower = phase.graph.problems
    batch = next(iter(lower.batches))
    phase.model.eval()  # no dropout
    named = dict(phase.model.named_parameters())
    factors = [p for n, p in named.items() if "lora_A" in n or "lora_B" in n]
    penalty = 0.5 / 2 * sum(p.square().sum() for p in factors)
    plain = phase.model(**batch).loss
    assert lower.loss(batch).item() == pytest.approx((plain + penalty).item(), rel=1e-6)
    assert upper.loss(batch).item() == pytest.approx(plain.item(), rel=1e-6)
    _, folder = run(options)
    decays = [v for n, v in values(folder).items() if "lora_log_decay" in n]
    assert len(decays) == 4
    assert max(abs(v.item() - math.log(0.5)) for v in decays) > 1e-3


@pytest.mark.parametrize("flags", [[], ["--control", "two_stage"], ["--cross_fitting", "2"]])
def test_the_upper_level_may_have_a_schedule_of_its_own(flags: list[str], tiny: Run) -> None:
    rates = ["--upper_learning_rate", "0.5", "--upper_lr_scheduler_type", "constant"]
    _, folder = run(tiny("bilora", *rates, *flags))
    found = [line["learning_rates"] for line in logged(folder) if "losses" in line]
    upper = [line["upper"] for line in found if "upper" in line]
    assert set(upper) == {0.5}
    lower = [rate for line in found for name, rate in line.items() if name != "upper"]
    assert min(lower) < max(lower) <= 1e-2


@pytest.mark.parametrize(
    "flags, penalised",
    [
        ([], {"upper"}),
        (["--cross_fitting", "2"], {"upper"}),
        (["--control", "two_stage"], {"upper"}),
        (["--control", "joint"], {"lower"}),
    ],
)
def test_binarisation_is_part_of_the_upper_loss(
    flags: list[str], penalised: set[str], tiny: Run
) -> None:
    binary = ["--singular_values", "binary", *flags]
    found = set()
    for with_it, without in zip(
        phases(work_of(tiny("bilora", *binary, "--binarisation", "0.5"))),
        phases(work_of(tiny("bilora", *binary))),
        strict=True,
    ):
        for one, other in zip(with_it.graph.problems, without.graph.problems, strict=True):
            batch = next(iter(one.batches))
            losses = []
            for problem in (one, other):
                torch.manual_seed(0)  # the same dropout
                losses.append(problem.loss(batch).item())
            difference = losses[0] - losses[1]
            if difference:
                # The entropy of each of the 8 gates is log 2 at the start.
                assert difference == pytest.approx(0.5 * 8 * math.log(2), rel=1e-4)
                found.add(one.name)
    assert found == penalised


def test_tied_values_are_one_number_a_layer(tiny: Run) -> None:
    summary, folder = run(tiny("bilora", "--singular_values", "real", "--tied_values"))
    found = upper(values(folder))
    assert summary["upper_params"] == len(found) == 4
    assert all(v.shape == (1,) and v.item() != 1 for v in found.values())


@pytest.mark.parametrize("method", ["bilora", "bidora"])
def test_retraining_keeps_the_values_that_the_search_has_found(method: str, tiny: Run) -> None:
    _, searched = run(tiny(method, "--retraining", "none", folder="searched"))
    summary, retrained = run(tiny(method, "--retraining", "values", folder="retrained"))
    assert same(upper(values(searched)), upper(values(retrained)))
    assert not same(values(searched), values(retrained))
    assert [(p["name"], p["lower_steps"]) for p in summary["phases"]] == [
        ("search", 6),
        ("retraining", 6),
    ]
    assert (summary["num_lower_steps"], summary["num_upper_steps"]) == (12, 6)
    assert (summary["num_gradients"], summary["retraining"]) == (6 * 4 + 2 + 6, "values")
    # The end of the search is reported too, as the run without retraining reports it.
    alone = json.loads((searched / "summary.json").read_text())
    for split in ("train", "test"):
        assert summary["phases"][0]["metrics"][split] == alone["metrics"][split]


def test_autolora_retrains_stock_lora_of_the_ranks_it_has_selected(tiny: Run) -> None:
    flags = ("--upper_learning_rate", "0.5", "--lora_r", "4")
    search, searched = run(tiny("autolora", *flags, "--retraining", "none", folder="searched"))
    summary, folder = run(tiny("autolora", *flags, folder="retrained"))
    work = work_of(tiny("autolora", *flags))
    model = PeftModel.from_pretrained(work.base, str(trained(searched)))
    expected = retrain_config(model)
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORA"
    assert written["rank_pattern"] == expected.rank_pattern
    assert min(expected.rank_pattern.values()) < 4  # something was selected
    assert reloaded(tiny("lora"), folder / "adapter")[1] == pytest.approx(
        summary["test_loss"], rel=1e-6
    )
    assert summary["trainable_params"] == search["trainable_params"]


def test_ranks_are_retrained_from_the_head_that_the_search_started_with(tiny: Run) -> None:
    heads = []
    for phase in phases(work_of(tiny("autolora"))):
        names = [n for n, p in phase.model.named_parameters() if "classifier" in n]
        parameters = dict(phase.model.named_parameters())
        heads.append([parameters[n].detach().clone() for n in names])
    search, retraining = heads
    assert len(search) > 0
    assert all(map(torch.equal, search, retraining))


@pytest.mark.parametrize(
    "method, flags, rows",
    [
        ("lora", [], [{"lower": 48}]),
        ("lora", ["--control", "lower_data_only"], [{"lower": 38}]),
        ("lora", ["--control", "upper_data_only"], [{"lower": 10}]),
        ("dora", ["--control", "two_stage"], [{"lower": 38}, {"lower": 10}]),
        ("bilora", [], [{"upper": 10, "lower": 38}]),
        ("bilora", ["--upper_fraction", "0.5"], [{"upper": 24, "lower": 24}]),
        ("bilora", ["--control", "joint"], [{"lower": 48}]),
        ("bilora", ["--control", "same_data"], [{"upper": 48, "lower": 48}]),
        ("bilora", ["--control", "two_stage"], [{"lower": 38}, {"upper": 10}]),
        (
            "bilora",
            ["--upper_warmup_steps", "1"],
            [{"lower": 38}, {"upper": 10, "lower": 38}],
        ),
        ("bidora", [], [{"upper": 10, "lower": 38}, {"lower": 48}]),
        ("autolora", [], [{"upper": 10, "lower": 38}, {"lower": 48}]),
        (
            "bilora",
            ["--cross_fitting", "3"],
            # Three of 16 in each fold make five batches; one of each fold is left for later.
            [{"upper": 45, "lower_1": 32, "lower_2": 32, "lower_3": 32}, {"lower": 48}],
        ),
    ],
)
def test_every_phase_reads_the_examples_it_is_meant_to(
    method: str, flags: list[str], rows: list[dict[str, int]], tiny: Run
) -> None:
    sequence = list(phases(work_of(tiny(method, *flags))))
    found = [
        {
            problem.name: sum(len(batch["labels"]) for batch in problem.batches)
            for problem in phase.graph.problems
        }
        for phase in sequence
    ]
    assert found == rows
    assert [phase.last for phase in sequence] == [False] * (len(rows) - 1) + [True]
    modules = [m for phase in sequence for p in phase.graph.problems for m in p.modules]
    assert all(module.training for module in modules)  # dropout is on


@pytest.mark.parametrize("flags", [[], ["--cross_fitting", "2"]])
def test_the_examples_are_divided_by_the_seed_of_the_splits(flags: list[str], tiny: Run) -> None:
    def rows(*seed: str) -> list[list[int]]:
        lower = next(phases(work_of(tiny("bilora", *flags, *seed)))).graph.problems[-1]
        batches: Any = lower.batches
        return [row["input_ids"] for row in batches.dataset]

    first = rows()
    assert first == rows("--seed", "7") != rows("--split_seed", "7")


def test_joint_training_moves_both_levels_with_one_gradient_an_update(tiny: Run) -> None:
    summary, folder = run(tiny("bilora", "--control", "joint"))
    assert (summary["num_gradients"], summary["num_upper_steps"]) == (6, 0)
    assert summary["upper_params"] == 8
    moved = upper(values(folder))
    assert all(value.std() > 0 for value in moved.values())  # equal logits at the start
    work = work_of(tiny("bilora", "--control", "joint", "--upper_learning_rate", "0.5"))
    phase = next(phases(work))
    (problem,) = phase.graph.problems
    assert [group["lr"] for group in problem.optimizer.param_groups] == [1e-2, 0.5]
    assert len(work.lower) == len(work.splits.train)


def test_two_stages_train_one_level_after_the_other(tiny: Run) -> None:
    work = work_of(tiny("bilora", "--control", "two_stage", "--lower_steps", "2"))
    assert set(work.lower["text"]).isdisjoint(work.upper["text"])
    sequence = phases(work)
    first = next(sequence)
    assert (first.name, first.updates.rounds, first.last) == ("training", 6, False)
    names = {id(p): n for n, p in first.model.named_parameters()}
    below = {names[id(p)] for p in first.graph.problems[0].parameters}
    second = next(sequence)
    above = {names[id(p)] for p in second.graph.problems[0].parameters}
    assert (second.name, second.updates.num_upper_steps, second.last) == ("values", 3, True)
    trainable = {n for n, p in first.model.named_parameters() if p.requires_grad}
    assert below | above == trainable
    assert not below & above
    assert all(any(part in name for part in UPPER) for name in above)
    summary, _ = run(tiny("bilora", "--control", "two_stage", "--lower_steps", "2"))
    assert [(p["lower_steps"], p["upper_steps"]) for p in summary["phases"]] == [(6, 0), (0, 3)]


def test_one_level_in_two_stages_goes_on_with_the_same_parameters_on_d2(tiny: Run) -> None:
    work = work_of(tiny("lora", "--control", "two_stage", "--max_steps", "12"))
    sequence = phases(work)
    first = next(sequence)
    before = [id(p) for p in first.graph.problems[0].parameters]
    second = next(sequence)
    assert (first.name, first.last, second.name, second.last) == (
        *("training", False),
        *("finishing", True),
    )
    assert [id(p) for p in second.graph.problems[0].parameters] == before
    assert second.updates.rounds == math.ceil(12 * len(work.upper) / len(work.lower)) == 4
    assert (
        work_of(tiny("lora", "--control", "upper_data_only")).lower["text"] == (work.upper["text"])
    )


def test_the_same_data_serve_both_levels_where_asked(tiny: Run) -> None:
    work = work_of(tiny("bilora", "--control", "same_data"))
    assert list(work.lower["text"]) == list(work.upper["text"]) == list(work.splits.train["text"])
    apart = work_of(tiny("bilora"))
    assert len(apart.lower) + len(apart.upper) == len(work.lower)


def test_training_on_the_lower_data_alone_is_training_where_nothing_else_exists(
    tiny: Run, tmp_path: Path
) -> None:
    options = tiny("lora", "--control", "lower_data_only", folder="control")
    work = work_of(options)
    assert (len(work.lower), len(work.upper)) == (38, 10)
    names = work.task.label_names
    (tmp_path / "d1").mkdir()
    for split, rows in (("train", work.lower), ("test", work.splits.test)):
        with (tmp_path / "d1" / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(zip(rows["text"], (names[k] for k in rows["label"]), strict=True))
    control, folder = run(options)
    plain, alone = run(tiny("lora", "--data_dir", str(tmp_path / "d1"), folder="alone"))
    assert same(values(folder), values(alone))
    assert control["test_loss"] == plain["test_loss"]
    assert control["train_size"] == 48  # the training numbers are those of all examples
    assert plain["train_size"] == len(work.lower)


def test_a_warm_up_goes_on_along_one_schedule_and_leaves_the_upper_level_alone(tiny: Run) -> None:
    flags = ("--upper_warmup_steps", "2", "--logging_steps", "1")
    summary, folder = run(tiny("bilora", *flags))
    rates = [line["learning_rates"]["lower"] for line in logged(folder) if "learning_rates" in line]
    # After each step: linear to zero over all six lower steps, of which two are the warm-up.
    assert rates == pytest.approx([1e-2 * (5 - k) / 6 for k in range(6)])
    assert [p["name"] for p in summary["phases"]] == ["warm_up", "search"]
    assert (summary["num_gradients"], summary["num_upper_steps"]) == (2 + 4 * 4 + 2, 4)
    with pytest.raises(UsageError, match=r"--upper_warmup_steps: must be less than the 6"):
        run(tiny("bilora", "--upper_warmup_steps", "6"))


SELECT = ("--eval_steps", "1", "--metric_for_best_model", "loss", "--lr_scheduler_type", "constant")


@pytest.mark.parametrize("method", ["lora", "bilora"])
def test_the_selected_step_is_the_run_that_ends_there(method: str, tiny: Run) -> None:
    flags = (*SELECT, "--learning_rate", "0.3")
    summary, folder = run(tiny(method, *flags, folder="long"))
    losses = [line["validation"]["loss"] for line in logged(folder) if "validation" in line]
    best = min(range(6), key=losses.__getitem__) + 1
    chosen = summary["selected"]
    assert (chosen["lower_steps"], chosen["validation_loss"]) == (best, losses[best - 1])
    assert best < 6  # otherwise the final step is meant, and nothing is tested
    stop = ("--max_steps", str(best))
    short, short_folder = run(tiny(method, *flags, *stop, folder="short"))
    assert same(values(folder, "selected"), values(short_folder))
    for name in ("train_metric", "train_loss", "test_metric", "test_loss", "ece", "brier"):
        assert chosen[name] == short[name]
    # The result is that of the last step.
    plain, plain_folder = run(tiny(method, *flags[4:], folder="plain"))
    assert same(values(folder), values(plain_folder))
    assert summary["test_loss"] == plain["test_loss"] != chosen["test_loss"]


def test_the_selected_step_of_the_upper_level_alone_is_counted_in_its_own_updates(
    tiny: Run,
) -> None:
    flags = (*SELECT, "--control", "two_stage", "--upper_learning_rate", "3")
    summary, folder = run(tiny("bilora", *flags))
    lines = [line for line in logged(folder) if "validation" in line and line["phase"] == "values"]
    losses = [line["validation"]["loss"] for line in lines]
    chosen = summary["selected"]
    assert len(losses) == 6
    best = min(range(6), key=losses.__getitem__) + 1
    assert (chosen["lower_steps"], chosen["validation_loss"]) == (best, losses[best - 1])
    assert closing.selected_lines(summary, folder)[0].endswith(f"after {best} of 6 updates")
    (table,) = report.steps(summary)
    assert [row[1].text for row in table.rows] == [str(best), "6"]


def test_d2_selects_for_a_method_that_does_not_train_on_it(tiny: Run) -> None:
    flags = (*SELECT, "--select_on", "upper_data", "--control", "lower_data_only")
    summary, folder = run(tiny("lora", *flags))
    work = work_of(tiny("lora", *flags))
    last = [line["validation"] for line in logged(folder) if "validation" in line][-1]
    model = PeftModel.from_pretrained(work.base, str(folder / "adapter"))
    found = scorer(model, work)(work.upper, "upper_data")
    assert last["loss"] == pytest.approx(found.loss, rel=1e-6)
    assert summary["selected"]["selected_on"] == "upper_data"
    (table,) = report.steps(summary)  # the run has a validation split besides
    assert table.head[2] == "D2 accuracy"
    assert table.rows[1][2].text == "\u2013"
    card = (folder / "selected" / "README.md").read_text()
    assert "| test |" in card
    assert "| validation |" not in card


def test_patience_ends_a_run_and_a_resumed_one_stays_ended(tiny: Run) -> None:
    flags = (*SELECT, "--early_stopping_patience", "2", "--learning_rate", "1", "--max_steps", "20")
    summary, folder = run(tiny("lora", *flags))
    losses = [line["validation"]["loss"] for line in logged(folder) if "validation" in line]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 1 + 2 < 20
    assert summary["num_lower_steps"] == len(losses)
    again, _ = run(tiny("lora", *flags, "--resume"))
    assert again["selected"] == summary["selected"]
    assert again["num_lower_steps"] == summary["num_lower_steps"]


@pytest.mark.parametrize(
    "method, flags, message",
    [
        ("lora", ["--control", "joint"], r"--control: method lora .*got 'joint'"),
        ("lora_weight_decay", ["--control", "joint"], r"--control: .*response alone, got 'joint'"),
        ("lora_weight_decay", ["--control", "two_stage"], "--control: .*response alone"),
        ("beam_lora", ["--two_levels", "--control", "two_stage"], "one at a time, got 'two_stage'"),
        ("lora_weight_decay", ["--hypergradient", "alternating"], "--hypergradient: .*alone"),
        ("lora_weight_decay", ["--mask_rate", "0.5"], "lora_weight_decay has no masks"),
        ("lora_weight_decay", ["--initial_weight_decay", "0"], "--initial_weight_decay: .*got 0"),
        ("bilora", ["--tied_values"], "--tied_values: needs --singular_values real"),
        ("bilora", ["--control", "lower_data_only"], "--control: method bilora"),
        ("lora", ["--retraining", "values"], "--retraining: there is no search"),
        ("bilora", ["--control", "joint", "--retraining", "values"], "no search to retrain"),
        ("bilora", ["--retraining", "ranks"], "--retraining: only autolora selects ranks"),
        ("dora", ["--mask_rate", "0.5"], "--mask_rate: method dora has no masks"),
        ("lora", ["--learn_mask_rate"], "--learn_mask_rate: needs"),
        ("lora", ["--early_stopping_patience", "2"], "--early_stopping_patience: needs"),
        ("lora", ["--metric_for_best_model", "loss"], "--metric_for_best_model: needs"),
        ("lora", [*SELECT, "--select_on", "upper_data"], "--select_on: .*all data"),
        ("bidora", [*SELECT, "--select_on", "upper_data"], "--retraining values all data"),
        ("lora", [*SELECT[:2], "--metric_for_best_model", "bleu"], "no metric 'bleu'"),
        ("bilora", ["--hypergradient", "unrolled", "--hypergradient_scale", "1"], "no scale"),
        ("bilora", ["--hypergradient", "darts", "--hypergradient_damping", "1"], "no damping"),
    ],
)
def test_what_a_method_does_not_have_is_refused(
    method: str, flags: list[str], message: str, tiny: Run
) -> None:
    with pytest.raises(UsageError, match=message):
        run(tiny(method, *flags))


def test_nothing_to_select_on_is_refused(tiny: Run, tiny_data: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_bytes((tiny_data / f"{name}.csv").read_bytes())
    with pytest.raises(UsageError, match="no validation split to select on"):
        run(tiny("lora", *SELECT, "--data_dir", str(tmp_path)))


HYPERGRADIENTS = {
    "darts": blo.darts(),
    "t1t2": blo.t1t2(),
    "neumann": blo.neumann(2, damping=0.5),
    "cg": blo.cg(2, damping=0.5),
    "minres": blo.minres(2, damping=0.5),
    "nystrom": blo.nystrom(2),
    "sama": blo.sama(),
    "unrolled": blo.unrolled(),
    "alternating": blo.alternating(),
}


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_every_hypergradient_is_the_one_that_is_asked_for(name: str, tiny: Run) -> None:
    flags = ["--hypergradient", name, "--hypergradient_products", "2", "--lower_steps", "2"]
    if name in ("neumann", "cg", "minres"):
        flags += ["--hypergradient_damping", "0.5"]
    phase = next(phases(work_of(tiny("bilora", *flags))))
    assert phase.graph.problems[1].method == HYPERGRADIENTS[name]
    summary, _ = run(tiny("bilora", *flags, "--max_steps", "2"))
    assert summary["hypergradient"]["method"] == name


def test_lora_dropout_is_tested_with_the_mean_probability_of_several_masks(tiny: Run) -> None:
    masks = ("--num_masks", "3", "--mask_rate", "0.4")
    options = tiny("lora_dropout", *masks)
    summary, folder = run(options)
    work = work_of(options)
    model = PeftModel.from_pretrained(work.base, str(trained(folder)))
    found = scorer(model, work)(work.splits.test, "test")
    assert found.loss == pytest.approx(summary["test_loss"], rel=1e-6)
    enlarge(model)
    before = torch.get_rng_state()
    found = scorer(model, work)(work.splits.test, "test")
    assert torch.equal(torch.get_rng_state(), before)
    rows = sorted(
        FAMILY.encode(work.splits.test, work.tokenizer, options),
        key=lambda row: len(row["input_ids"]),
    )
    batch = FAMILY.collator(work.tokenizer)(rows)
    labels = batch.pop("labels")
    torch.manual_seed(0)
    with torch.no_grad(), masking(model.eval(), on=True):
        drawn = [model(**batch).logits.softmax(-1) for _ in range(3)]
    loss = -torch.stack(drawn).mean(0)[range(len(labels)), labels].log().mean()
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    batches = tiny("lora_dropout", *masks, "--per_device_eval_batch_size", "7")
    again = scorer(model, work_of(batches))(work.splits.test, "test")
    assert again.loss == pytest.approx(found.loss, rel=1e-5)
    alone = scorer(model, work_of(tiny("lora_dropout", "--ensemble", "false")))(
        work.splits.test, "test"
    )
    assert abs(alone.loss - found.loss) > 1e-4


def enlarge(model: torch.nn.Module) -> None:
    """Make B so large that masks matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 3, generator=torch.Generator().manual_seed(7))


def test_lora_dropout_is_trained_on_the_mean_loss_under_several_masks(tiny: Run) -> None:
    phase = next(phases(work_of(tiny("lora_dropout", "--num_masks", "3", "--mask_rate", "0.4"))))
    enlarge(phase.model)
    (problem,) = phase.graph.problems
    batch = next(iter(problem.batches))
    torch.manual_seed(0)
    losses = [phase.model(**batch).loss.item() for _ in range(3)]
    assert max(losses) - min(losses) > 1e-3
    torch.manual_seed(0)
    assert problem.loss(batch).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning")
def test_adalora_in_two_stages_keeps_its_ranks_and_is_saved_as_it_is(tiny: Run) -> None:
    flags = ("--lora_r", "4", "--max_steps", "10", "--learning_rate", "0.1")
    options = tiny("adalora", *flags, "--control", "two_stage")
    summary, folder = run(options)
    found = {name: value for name, value in values(folder).items() if "lora_E" in name}
    assert sum(value.shape[0] for value in found.values()) == 4 * 4
    assert reloaded(options, folder / "adapter")[1] == pytest.approx(summary["test_loss"], rel=1e-6)


def test_adalora_prunes_to_the_rank_asked_for_and_has_loras_scale(tiny: Run) -> None:
    flags = ("--lora_r", "4", "--lora_alpha", "8", "--max_steps", "40")
    _, folder = run(tiny("adalora", *flags))
    found = {name: value for name, value in values(folder).items() if "lora_E" in name}
    assert len(found) == 4  # query and value of two layers
    assert sum(value.shape[0] for value in found.values()) == 4 * 4  # pruned ranks are not saved
    phase = next(phases(work_of(tiny("adalora", *flags))))
    settings = phase.model.peft_config["default"]
    # The budget falls from 10 % to 70 % of the updates.
    assert (settings.tinit, settings.total_step - settings.tfinal) == (4, 28)
    assert settings.total_step == 40
    layers = [m for m in phase.model.modules() if hasattr(m, "ranknum")]
    assert len(layers) == 4
    for layer in layers:
        assert layer.lora_E["default"].shape[0] == 6  # it starts at 1.5 times the rank
        x = torch.randn(3, 16)
        A, B, E = (getattr(layer, f"lora_{name}")["default"] for name in "ABE")
        with torch.no_grad():
            E.fill_(0.5)
            delta = layer(x) - layer.base_layer(x)
            expected = 8 / 4 * x @ A.T @ torch.diag(E.flatten()) @ B.T
        torch.testing.assert_close(delta, expected, rtol=1e-3, atol=1e-6)
