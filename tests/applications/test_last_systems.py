"""BeamLoRA, MoLE, SD-LoRA and RepLoRA from the command line, on one level and on two."""

from typing import Any

import pytest
from peft import LoraConfig, PeftConfig

from adapters import BeamSearch, levels
from applications.data.splits import split_task
from applications.errors import UsageError
from applications.methods import METHODS, mole_config
from applications.options.completion import completed
from applications.runs import phases
from tests.applications.tiny_runs import FAMILY, Run, cut_and_resumed, reloaded, run, same_tensors

# BeamLoRA says so where a run is too short for a move.
pytestmark = pytest.mark.filterwarnings("ignore:.*nothing is ever moved:UserWarning")
LAST = ("beam_lora", "mole", "sd_lora", "rep_lora")


@pytest.mark.parametrize("two_levels", [False, True])
@pytest.mark.parametrize("method", LAST)
def test_stock_peft_loads_what_a_run_exports_and_scores_the_same(
    method: str, two_levels: bool, tiny: Run
) -> None:
    flags = ["--export_lora", "--max_steps", "2"]
    if two_levels:
        flags.append("--two_levels")
    elif method == "mole":
        _, folder = run(tiny("lora", "--max_steps", "2", folder="expert"))
        flags += ["--experts", str(folder / "adapter")]
    options = tiny(method, *flags)
    summary, folder = run(options)
    assert type(PeftConfig.from_pretrained(folder / "lora")) is LoraConfig
    metric, loss = reloaded(options, folder / "lora")
    assert metric == summary["test_metric"]
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)
    assert (summary["upper_params"] > 0) is two_levels
    assert (summary["hypergradient"] is not None) is two_levels


def test_ranks_of_beam_lora_move_and_a_run_goes_on_where_it_was(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[tuple[int, float]] = []
    move = BeamSearch._move

    def counted(self: BeamSearch, share: float) -> None:
        moves.append((self.num_steps + 1, share))
        move(self, 0.5)  # what it keeps of nearly equal values: some are pruned

    monkeypatch.setattr(BeamSearch, "_move", counted)

    def make(*flags: str, folder: str) -> Any:
        words = ("--two_levels", "--max_steps", "12", "--save_steps", "2", "--logging_steps", "1")
        return tiny("beam_lora", *words, *flags, folder=folder)

    resumed, straight = cut_and_resumed(make, ("search", 6))
    same_tensors(*(f / "adapter" / "adapter_model.safetensors" for f in (resumed, straight)))
    # Of 12 steps, with two thirds as the end: moves after 4 and 8, the second once more.
    assert [step for step, _ in moves] == [4, 8, 8]
    assert moves[0][1] == pytest.approx(1 - 0.05 * (1 + 0) / 2)


def test_what_moves_follows_the_optimizer_of_the_phase(tiny: Run) -> None:
    held = {}
    for control in ("none", "joint"):
        options = completed(tiny("beam_lora", "--two_levels", "--control", control), FAMILY)
        task = FAMILY.load_task(options.data)
        work = phases.prepare(options, FAMILY, task, split_task(task, options.data))
        phase = next(phases.phases(work))
        (hook,) = phase.stateful
        held[control] = len(hook._optimizers)  # type: ignore[attr-defined]
        assert len(levels(phase.model).upper) == 4
    assert held == {"none": 2, "joint": 1}


def test_new_experts_have_the_rank_and_the_scale_of_lora() -> None:
    settings = mole_config(
        experts=None, num_experts=3, train_experts=True, r=4, lora_alpha=8, target_modules=["0"]
    )
    assert settings.ranks == [4, 4, 4]
    assert settings.lora_alpha / settings.r == 8 / 4


def test_levels_that_a_method_lacks_are_refused(tiny: Run) -> None:
    for flags, message in (
        (("lora", "--two_levels"), "method lora has no upper level"),
        (("bilora", "--two_levels"), "method bilora always has an upper level"),
        (
            ("beam_lora", "--control", "joint"),
            "has the controls none, two_stage, lower_data_only, upper_data",
        ),
        (("beam_lora", "--two_levels", "--cross_fitting", "2"), "every fold has its own"),
    ):
        with pytest.raises(UsageError, match=message):
            completed(tiny(*flags), FAMILY)
    for words, message in (
        (("mole",), "weighs adapters that exist, got none"),
        (("mole", "--experts", "nowhere"), "must be folders with an adapter"),
        (("beam_lora", "--lora_r", "1"), "must be at least 2 for BeamLoraConfig"),
    ):
        with pytest.raises(UsageError, match=message):
            run(tiny(*words))
    for words, message in (
        (("mole", "--num_experts", "1"), "must be at least 2, got 1"),
        (("rep_lora", "--generator_width", "0"), "must be at least 1, got 0"),
    ):
        with pytest.raises(UsageError, match=message):
            tiny(*words)
    with pytest.raises(UsageError, match="sizes of RepLoRA's network were never published"):
        tiny("rep_lora", "--preset", "paper")
    assert all(METHODS[name].second_level for name in LAST)
