"""The published settings, against a copy of the scripts' numbers, and refusals."""

import pytest

from applications.errors import UsageError
from applications.options.command_line import parse_options

# lr, weight decay of both levels, search steps, retraining lr and steps (None: not retrained).
SCRIPTS = {
    ("roberta-base", "cola"): (5e-5, 0.1, 0.1, 20000, 3e-5, 30000),
    ("roberta-base", "mnli"): (5e-5, 0.1, 0.1, 30000, 7e-5, 40000),
    ("roberta-base", "mrpc"): (2e-5, 0.1, 0.1, 28000, None, None),
    ("roberta-base", "qnli"): (2e-5, 0.1, 0.0, 20000, None, None),
    ("roberta-base", "qqp"): (5e-5, 0.1, 0.1, 30000, 5e-5, 30000),
    ("roberta-base", "rte"): (1e-5, 0.1, 0.1, 15000, 3e-5, 15000),
    ("roberta-base", "sst2"): (1e-5, 0.12, 0.0, 12000, None, None),
    ("roberta-base", "stsb"): (1e-5, 0.1, 0.01, 12000, None, None),
    ("roberta-large", "cola"): (1e-5, 1.0, 1.0, 20000, 1e-5, 40000),
    ("roberta-large", "mnli"): (1e-5, 0.5, 0.5, 55000, None, None),
    ("roberta-large", "mrpc"): (1e-5, 0.0, 0.0, 40000, None, None),
    ("roberta-large", "qnli"): (1e-5, 0.5, 0.5, 60000, None, None),
    ("roberta-large", "qqp"): (1e-5, 0.5, 0.5, 50000, None, None),
    ("roberta-large", "rte"): (1e-5, 0.5, 0.5, 15000, 1e-5, 30000),
    ("roberta-large", "sst2"): (1e-5, 0.5, 0.5, 20000, None, None),
    ("roberta-large", "stsb"): (1e-5, 0.5, 0.5, 14000, None, None),
}


@pytest.mark.parametrize("model, task", SCRIPTS)
def test_the_settings_are_those_of_the_released_scripts(model: str, task: str) -> None:
    options = parse_options(
        ["--preset=paper", f"--model=FacebookAI/{model}", f"--task={task}", "--method=bidora"]
    )
    run, level, adapter = options.run, options.levels, options.adapter
    found = (
        *(run.learning_rate, run.weight_decay, level.upper_weight_decay, run.max_steps),
        *(level.retraining_learning_rate, level.retraining_steps),
    )
    assert found == SCRIPTS[model, task]
    assert level.upper_learning_rate == run.learning_rate
    assert level.retraining == ("none" if found[4] is None else "values")
    assert (adapter.lora_r, adapter.lora_alpha, adapter.norm_axis) == (4, 8, "in")
    assert adapter.lora_target_modules == ["query", "value"]
    assert (adapter.orthogonality, adapter.orthogonality_squared) == (1e-5, False)
    assert (run.adam_beta1, run.adam_beta2, run.adam_epsilon) == (0.9, 0.98, 1e-6)
    batch = 64 if (model, task) == ("roberta-large", "qnli") else 32
    assert run.per_device_train_batch_size == batch
    # Betty's response is unscaled; one lower step an upper one, a fifth of the data above.
    assert (level.hypergradient, level.hypergradient_scale) == ("darts", 1.0)
    assert (level.lower_steps, level.upper_fraction, run.warmup_ratio) == (1, 0.2, 0.1)
    decay = {("roberta-large", "cola"): 1.0, ("roberta-large", "rte"): 0.3}.get((model, task), 0.0)
    assert level.retraining_weight_decay == (None if found[4] is None else decay)
    assert options.data.max_seq_length == (512 if model == "roberta-base" else 128)


def test_flags_override_a_preset() -> None:
    flags = ["--preset", "paper", "--model", "roberta-base", "--task", "rte", "--method", "bidora"]
    options = parse_options([*flags, "--learning_rate", "3e-4", "--lora_r", "8"])
    assert (options.run.learning_rate, options.adapter.lora_r) == (3e-4, 8)
    assert options.run.max_steps == 15000


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--method", "bilora", "--model", "roberta-base"], "BiLoRA's paper could not be read"),
        (["--method", "lora_dropout"], "LoRA Dropout's paper could not be read"),
        (["--method", "bidora", "--model", "gpt2"], "roberta-base and roberta-large, got .*gpt2"),
        (["--method", "lora", "--model", "roberta-base"], "got --method lora"),
        (["--method", "bidora", "--model", "roberta-base", "--task", "trec"], "task_name 'trec'"),
    ],
)
def test_what_was_never_published_is_refused_with_the_reason(flags: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=f"--preset: .*{reason}"):
        parse_options(["--preset", "paper", *flags])
