"""A table of wrong arguments of adapters: each is one sentence, and what lies beside it trains."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from adapters import (
    Balance,
    BeamLoraConfig,
    BeamSearch,
    BiDoraConfig,
    BiLoraConfig,
    LoraDropoutConfig,
    LoraWeightDecayConfig,
    MoleConfig,
    Orthogonality,
    RepLoraConfig,
    SdLoraConfig,
    export_lora,
    next_task,
)

MODULES = ["query", "value"]
CONFIGS: tuple[Any, ...] = (BiLoraConfig, BiDoraConfig, SdLoraConfig, RepLoraConfig)


class Attention(nn.Module):
    """Two linear maps, as everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.value(self.query(x).tanh())
        return found


def made(config: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    given = {"r": 2, "lora_alpha": 4, "target_modules": MODULES} | options
    return get_peft_model(Attention(), config(**given))  # type: ignore[arg-type]


def trains(config: Any, **options: Any) -> None:
    model = made(config, **options)
    model(torch.ones(3, 4)).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def searched(every: Any = 4, num_steps: Any = 8, **options: Any) -> None:
    model = made(BeamLoraConfig)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    BeamSearch(optimizer, model, every=every, num_steps=num_steps, **options)


def continued(**options: Any) -> None:
    model = made(SdLoraConfig)
    nn.init.ones_(model.base_model.model.query.lora_B["default"].weight)
    assert next_task(model, **options) == 2


def other() -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)


# What every configuration takes: (option, wrong, what is said, right).
SHARED: tuple[tuple[str, Any, str, Any], ...] = (
    ("r", 2.5, "r must be an integer of at least 1, got 2.5", 3),
    ("r", "4", "r must be an integer of at least 1, got '4'", 4),
    ("r", 0, "r must be an integer of at least 1, got 0", 2),
    ("lora_alpha", math.nan, "lora_alpha must be a finite number above 0, got nan", 1),
    ("lora_alpha", math.inf, "lora_alpha must be a finite number above 0, got inf", 1e3),
    ("lora_alpha", 0, "lora_alpha must be a finite number above 0, got 0", 0.5),
    ("lora_alpha", "x", "lora_alpha must be .* got 'x'", 2),
    ("alpha_pattern", {"query": -1}, r"alpha_pattern\['query'\] must be .* got -1", {"query": 3}),
    ("lora_dropout", math.nan, r"lora_dropout must be in \[0, 1\), got nan", 0.0),
    ("lora_dropout", 1.0, r"lora_dropout must be in \[0, 1\), got 1.0", 0.0),
    ("bias", "some", r"bias must be one of \('none', 'all', 'lora_only'\), got 'some'", "all"),
    ("use_rslora", "no", "use_rslora must be True or False, got 'no'", True),
    ("joint", 1, "joint must be True or False, got 1", True),
)
# Calls: (wrong, what is said, beside it).
ROWS: dict[str, tuple[Any, str, Any]] = {
    "rank of a pattern": (
        lambda: trains(BiLoraConfig, rank_pattern={"query": 2.0}),
        r"rank_pattern\['query'\] must be an integer",
        lambda: trains(BiLoraConfig, rank_pattern={"query": 3}),
    ),
    "ranks, zero": (
        lambda: trains(MoleConfig, ranks=[2, 0], train_experts=True),
        r"ranks\[1\] must be an integer of at least 1, got 0",
        lambda: trains(MoleConfig, ranks=[2, 1], train_experts=True, joint=True),
    ),
    "ranks, negative": (
        lambda: trains(MoleConfig, ranks=[-1, 2], train_experts=True),
        r"ranks\[0\] must be an integer of at least 1, got -1",
        lambda: trains(MoleConfig, ranks=[1, 2], train_experts=True, joint=True),
    ),
    "ranks, text": (
        lambda: trains(MoleConfig, ranks="22", train_experts=True),
        "ranks must be a list of integers, got '22'",
        lambda: trains(MoleConfig, ranks=(2, 2), train_experts=True, joint=True),
    ),
    "temperature, infinite": (
        lambda: trains(MoleConfig, ranks=[2, 2], train_experts=True, temperature=math.inf),
        "temperature must be a finite number above 0, got inf",
        lambda: trains(MoleConfig, ranks=[2, 2], train_experts=True, temperature=10.0, joint=True),
    ),
    "temperature of ranks, text": (
        lambda: trains(BeamLoraConfig, temperature="1"),
        "temperature must be a finite number above 0, got '1'",
        lambda: trains(BeamLoraConfig, temperature=1),
    ),
    "width, fraction": (
        lambda: trains(RepLoraConfig, width=2.5),
        "width must be an integer of at least 1, got 2.5",
        lambda: trains(RepLoraConfig, width=2),
    ),
    "mask rate, one": (
        lambda: trains(LoraDropoutConfig, mask_rate=1),
        r"mask_rate must be in \[0, 1\), got 1",
        lambda: trains(LoraDropoutConfig, mask_rate=0.5),
    ),
    "decay, infinite": (
        lambda: trains(LoraWeightDecayConfig, initial_weight_decay=math.inf),
        "initial_weight_decay must be a finite number above 0",
        lambda: trains(LoraWeightDecayConfig, initial_weight_decay=0.1),
    ),
    "rank of a task, fraction": (
        lambda: continued(rank=1.5),
        "rank must be an integer of at least 1, got 1.5",
        lambda: continued(rank=1),
    ),
    "tolerance, negative": (
        lambda: continued(tolerance=-1e-3),
        r"tolerance must be in \[0, 1\), got -0.001",
        lambda: continued(tolerance=1e-3),
    ),
    "tolerance, nan": (
        lambda: continued(tolerance=math.nan),
        r"tolerance must be in \[0, 1\), got nan",
        lambda: continued(tolerance=0),
    ),
    "period, fraction": (
        lambda: searched(4.0),
        "every must be an integer of at least 4, got 4.0",
        lambda: searched(4),
    ),
    "steps, none": (
        lambda: searched(4, 0),
        "num_steps must be an integer of at least 1, got 0",
        lambda: searched(4, 8),
    ),
    "scores of another optimizer": (
        lambda: searched(score_optimizer=other()),
        "score_optimizer must hold the scores, got an optimizer of other parameters",
        searched,
    ),
    "what follows a move": (
        lambda: searched(on_move="x"),
        "on_move must be a function of a number, got 'x'",
        lambda: searched(on_move=print),
    ),
    "an infinite penalty": (
        lambda: Orthogonality(math.inf),
        "weight must be a finite number of at least 0, got inf",
        lambda: Orthogonality(1.0),
    ),
    "a text as penalty": (
        lambda: Balance("1"),  # type: ignore[arg-type]
        "weight must be a finite number of at least 0, got '1'",
        lambda: Balance(1),
    ),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("option, wrong, says, right", SHARED)
def test_every_configuration_refuses_it(
    config: Any, option: str, wrong: Any, says: str, right: Any
) -> None:
    with pytest.raises(ValueError, match=f"^{says}") as refusal:
        config(target_modules=MODULES, **{option: wrong})
    assert "\n" not in str(refusal.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of both levels trained jointly
        trains(config, **{option: right})


@pytest.mark.parametrize("what", ROWS)
def test_it_is_refused_and_what_lies_beside_it_is_not(what: str) -> None:
    wrong, says, beside = ROWS[what]
    with pytest.raises(ValueError, match=f"^{says}") as refusal:
        wrong()
    assert "\n" not in str(refusal.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        beside()


def test_what_would_be_without_effect_is_said() -> None:
    with pytest.warns(UserWarning, match=r"num_steps=6 is less than 2 \* every=8: nothing is"):
        searched(4, 6)
    with pytest.warns(UserWarning, match=r"target_modules names \['valeu'\], which no module"):
        made(SdLoraConfig, target_modules=["query", "valeu"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(SdLoraConfig, target_modules=r".*(query|valeu)")
        made(SdLoraConfig, target_modules=["query", "value"])


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    model: PeftModel = made(BeamLoraConfig)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"path must be a folder, got .* is a file"):
            export_lora(model, path)
    assert LoraConfig.from_pretrained(str(export_lora(model, tmp_path / "folder"))).r == 2
