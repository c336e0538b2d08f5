"""What fine-tuning with weighted sources sees, row by row."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import TaskType
from transformers.loss.loss_utils import (
    ForCausalLMLoss,
    ForSequenceClassificationLoss,
    ForTokenClassification,
)

from applications.data.batches import training_batches
from applications.data.examples import TaskData
from applications.data.splits import Splits
from applications.errors import UsageError
from applications.families.classification import TextClassification
from applications.options.arguments import (
    AdapterOptions,
    LevelOptions,
    ModelOptions,
    Options,
    RunOptions,
)
from applications.options.completion import completed
from applications.options.weighting import WeightingOptions
from applications.runs.phases import Phase
from applications.weighting.finetuning import workload
from applications.weighting.gathering import Gathered, Group
from applications.weighting.online import each_loss, online_phases


def test_rows_are_drawn_in_proportion_to_their_weights():
    rows = [{"n": 0}] * 100 + [{"n": 1}] * 100 + [{"n": 2}] * 100
    weights = [0.0] * 100 + [0.5] * 100 + [1.5] * 100
    batches = training_batches(
        rows, lambda found: [row["n"] for row in found], size=10, seed=0, weights=weights
    )
    drawn = [n for _ in range(10) for batch in batches for n in batch]
    assert len(drawn) == 3000
    assert 0 not in drawn
    assert drawn.count(2) / 3000 == pytest.approx(0.75, abs=0.03)  # four standard errors


def group(name: str, texts: list[str]) -> Group:
    return Group(name, name, (name,), Dataset.from_dict({"text": texts, "label": [0] * len(texts)}))


def test_a_source_of_weight_zero_is_not_trained_on(tiny_model: str):
    """Cats have a weight, dogs none, horses three times as much a row."""
    groups = (group("a", ["cat"] * 20), group("b", ["dog"] * 20), group("c", ["horse"] * 20))
    target = Dataset.from_dict({"text": ["cat", "dog"], "label": [0, 1]})
    task = TaskData("pets", "classification", "accuracy", ("x", "y"), {"train": target})
    options = Options(
        model=ModelOptions(model_name_or_path=tiny_model, device="cpu"),
        adapter=AdapterOptions(method="bilora"),
    )
    weights = {"a": 1.0, "b": 0.0, "c": 3.0}
    work = workload(
        options,
        TextClassification(),
        Gathered(task, groups),
        Splits(target, None, target, ()),
        weights,
    )
    batches = work.batches(work.lower, 0)
    rows = [row for _ in range(10) for batch in batches for row in batch["input_ids"].tolist()]
    cat, dog, horse = (
        work.tokenizer.convert_tokens_to_ids(word) for word in ("cat", "dog", "horse")
    )
    counts = [sum(number in row for row in rows) for number in (cat, dog, horse)]
    assert counts[1] == 0
    assert counts[2] / sum(counts) == pytest.approx(0.75, abs=0.08)
    above = [row for batch in work.batches(work.upper, 0) for row in batch["input_ids"].tolist()]
    assert sorted(row[1] for row in above) == sorted((cat, dog))


def test_the_loss_of_a_text_is_that_of_transformers():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    config = SimpleNamespace(problem_type="single_label_classification", num_labels=3)
    expected = ForSequenceClassificationLoss(labels, logits, config)
    found = each_loss(SimpleNamespace(logits=logits), labels, TaskType.SEQ_CLS)
    torch.testing.assert_close(found.mean(), expected)


def test_the_loss_of_a_number_is_that_of_transformers():
    logits, labels = torch.randn(4, 1), torch.randn(4)
    config = SimpleNamespace(problem_type="regression", num_labels=1)
    expected = ForSequenceClassificationLoss(labels, logits, config)
    found = each_loss(SimpleNamespace(logits=logits), labels, TaskType.SEQ_CLS)
    torch.testing.assert_close(found.mean(), expected)


@pytest.mark.parametrize("kind", [TaskType.TOKEN_CLS, TaskType.CAUSAL_LM])
def test_the_loss_of_each_row_of_tokens_is_that_of_transformers(kind: TaskType):
    logits = torch.randn(3, 5, 7)
    labels = torch.randint(0, 7, (3, 5))
    labels[0, :2] = labels[1, 3:] = -100
    found = each_loss(SimpleNamespace(logits=logits), labels, kind)
    for row in range(3):
        one, known = logits[row : row + 1], labels[row : row + 1]
        if kind == TaskType.CAUSAL_LM:
            expected = ForCausalLMLoss(one, known, 7)
        else:
            expected = ForTokenClassification(one, known, SimpleNamespace(num_labels=7))
        torch.testing.assert_close(found[row], expected)


def online_phase(tiny_model: str, adapter: AdapterOptions) -> Phase:
    """The two levels of the online route over two sources of three words."""
    groups = (group("a", ["cat"] * 3), group("b", ["dog"] * 3))
    target = Dataset.from_dict({"text": ["cat", "dog"], "label": [0, 1]})
    task = TaskData("pets", "classification", "accuracy", ("x", "y"), {"train": target})
    options = Options(
        model=ModelOptions(model_name_or_path=tiny_model, device="cpu"),
        adapter=adapter,
        run=RunOptions(max_steps=40, gradient_accumulation_steps=2),
    )
    family, splits = TextClassification(), Splits(target, None, target, ())
    options = completed(options, family)
    asked = WeightingOptions(route="online")
    _, _, phases = online_phases(options, family, Gathered(task, groups), splits, asked)
    return next(phases)


@pytest.mark.parametrize("method", ["lora", "adalora", "beam_lora", "sd_lora"])
def test_online_every_adapter_trains_as_it_does_alone(tiny_model: str, method: str):
    """With weights of one the loss below is the adapter's own, its penalties included, and what
    acts after its steps is there: AdaLoRA's ranks, BeamLoRA's beams.
    """
    phase = online_phase(tiny_model, AdapterOptions(method=method, lora_r=2))
    problem = phase.graph.problems[1]
    batch = next(iter(problem.batches))
    plain = {name: value for name, value in batch.items() if name != "members"}
    phase.model.eval()
    torch.testing.assert_close(problem.loss(batch), phase.model(**plain).loss)
    assert [p.accumulate for p in phase.graph.problems] == [2, 2]
    assert bool(phase.stateful) == (method in ("adalora", "beam_lora"))


def test_online_lora_dropout_trains_on_the_mean_under_several_masks(tiny_model: str):
    adapter = AdapterOptions(method="lora_dropout", lora_r=2, num_masks=3, mask_rate=0.4)
    phase = online_phase(tiny_model, adapter)
    with torch.no_grad():
        for name, parameter in phase.model.named_parameters():
            if "lora_B" in name:  # so large that masks matter
                parameter.normal_(0, 3, generator=torch.Generator().manual_seed(7))
    upper, lower = phase.graph.problems
    given = next(iter(lower.batches))
    plain = {name: value for name, value in given.items() if name != "members"}
    torch.manual_seed(0)
    losses = [phase.model(**plain).loss.item() for _ in range(3)]
    assert max(losses) - min(losses) > 1e-3
    for problem, batch in ((lower, given), (upper, plain)):
        torch.manual_seed(0)
        assert problem.loss(batch).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


@pytest.mark.parametrize("control", ["two_stage", "same_data"])
def test_controls_that_divide_other_data_are_refused(tiny_model: str, control: str):
    groups = (group("a", ["cat"] * 3), group("b", ["dog"] * 3))
    target = Dataset.from_dict({"text": ["cat", "dog"], "label": [0, 1]})
    task = TaskData("pets", "classification", "accuracy", ("x", "y"), {"train": target})
    method = "bilora" if control == "same_data" else "lora"
    options = Options(
        model=ModelOptions(model_name_or_path=tiny_model, device="cpu"),
        adapter=AdapterOptions(method=method),
        levels=LevelOptions(control=control),
    )
    with pytest.raises(UsageError, match=r"--control: the sources are the data below"):
        workload(
            options,
            TextClassification(),
            Gathered(task, groups),
            Splits(target, None, target, ()),
            {"a": 1.0, "b": 1.0},
        )
