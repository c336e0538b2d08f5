"""Two levels in TRL's trainers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters import BiLoraConfig
from adapters.trainer import TwoLevelMixin
from blo import darts, t1t2

trl = pytest.importorskip("trl", reason="TRL is not installed")

# transformers' own: its saved random state and progress callback.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WORDS = ["<pad>", "</s>", "<unk>", "a", "b", "c", "d", "e", "f", "g"]
CONFIG = {"r": 2, "target_modules": ["q_proj", "v_proj"], "values": "real"}


class TwoLevelSFTTrainer(TwoLevelMixin, trl.SFTTrainer):  # type: ignore[misc, name-defined]
    """TRL's supervised fine-tuning on two levels."""


class TwoLevelDPOTrainer(TwoLevelMixin, trl.DPOTrainer):  # type: ignore[misc, name-defined]
    """TRL's preference optimisation on two levels."""


class TwoLevelRewardTrainer(TwoLevelMixin, trl.RewardTrainer):  # type: ignore[misc, name-defined]
    """TRL's reward models on two levels."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Nine words."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def llama() -> LlamaForCausalLM:
    """A Llama of two layers."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **sizes, **heads, **special))


def texts(number: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 7, (number,), generator=generator)
    draw = lambda n: torch.randint(3, len(WORDS), (n,), generator=generator)
    return [" ".join(WORDS[i] for i in draw(int(n))) for n in sizes]


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """What every test hands over; the rest are TRL's defaults."""
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": False,
        **changes,
    }


def values(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def test_sft_with_its_defaults(tmp_path: Path) -> None:
    """Gradient checkpointing, bf16, its own metrics; the adapter is made by the trainer."""
    trainer = TwoLevelSFTTrainer(
        llama(),
        trl.SFTConfig(**options(tmp_path)),
        train_dataset=Dataset.from_dict({"text": texts(16, 1)}),
        upper_dataset=Dataset.from_dict({"text": texts(8, 2)}),
        processing_class=tokenizer(),
        peft_config=BiLoraConfig(**CONFIG),
    )
    assert trainer.args.gradient_checkpointing
    assert trainer.args.bf16
    assert "input_ids" in trainer.upper_dataset.column_names
    start = values(trainer.model)
    trainer.train()
    moved = [n for n, v in values(trainer.model).items() if not torch.equal(v, start[n])]
    assert any("diagonal" in n for n in moved)
    assert any("lora_B" in n for n in moved)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    assert all(
        {"upper_loss", "hypergradient_norm", "mean_token_accuracy"} <= {*log} for log in logs
    )
    # Tokens of the lower batches alone, each counted once.
    counted = sum(len(t.split()) + 1 for t in sorted_as(trainer, 8))
    assert logs[-1]["num_tokens"] == counted


def sorted_as(trainer: Any, number: int) -> list[str]:
    """The texts of the first lower batches, in the order that the trainer draws them."""
    loader = trainer.get_train_dataloader()
    loader.set_epoch(0)
    rows: list[str] = []
    for batch in loader:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            rows.append(" ".join(WORDS[i] for i in ids[mask.bool()][:-1]))
    return rows[:number]


def test_exact_products_are_refused_where_its_head_has_one_derivative(tmp_path: Path) -> None:
    trainer = TwoLevelSFTTrainer(
        llama(),
        trl.SFTConfig(**options(tmp_path)),
        train_dataset=Dataset.from_dict({"text": texts(16, 1)}),
        upper_dataset=0.5,
        processing_class=tokenizer(),
        peft_config=BiLoraConfig(**CONFIG),
        method=t1t2(),
    )
    assert len(trainer.train_dataset) == len(trainer.upper_dataset) == 8
    with pytest.raises(RuntimeError, match="darts"):
        trainer.train()


def preferences(number: int, seed: int) -> Dataset:
    """Pairs of continuations."""
    rows = [texts(number, seed + i) for i in range(3)]
    columns = zip(("prompt", "chosen", "rejected"), rows, strict=True)
    return Dataset.from_dict({name: [f" {t}" for t in row] for name, row in columns})


@pytest.mark.parametrize("kind", [TwoLevelDPOTrainer, TwoLevelRewardTrainer])
def test_preference_trainers(kind: Any, tmp_path: Path) -> None:
    reward = kind is TwoLevelRewardTrainer
    model: Any = llama()
    if reward:
        from transformers import LlamaForSequenceClassification

        model.config.num_labels = 1
        model = LlamaForSequenceClassification(model.config)
    config = (trl.RewardConfig if reward else trl.DPOConfig)(**options(tmp_path))
    trainer = kind(
        model,
        args=config,
        train_dataset=preferences(16, 1),
        upper_dataset=preferences(8, 9),
        processing_class=tokenizer(),
        peft_config=BiLoraConfig(**CONFIG, task_type="SEQ_CLS" if reward else "CAUSAL_LM"),
        method=darts(),
    )
    start = values(trainer.model)
    trainer.train()
    moved = [n for n, v in values(trainer.model).items() if not torch.equal(v, start[n])]
    assert any("diagonal" in n for n in moved)
    assert any("lora_B" in n for n in moved)


def warm() -> Any:
    """A trained adapter."""
    model = get_peft_model(llama(), BiLoraConfig(**CONFIG, task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in values_of(model):
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def values_of(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("beforehand", [False, True])
def test_the_reference_of_a_trained_adapter_is_the_adapter(
    beforehand: bool, tmp_path: Path
) -> None:
    """Before the first step the log ratios are zero and the DPO loss is log 2, at both levels."""
    trainer = TwoLevelDPOTrainer(
        warm(),
        args=trl.DPOConfig(
            **options(tmp_path, learning_rate=0.0, max_steps=1, bf16=False),
            precompute_ref_log_probs=beforehand,
        ),
        train_dataset=preferences(8, 1),
        upper_dataset=preferences(8, 9),
        processing_class=tokenizer(),
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log["upper_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_trainers_that_generate_are_refused(tmp_path: Path) -> None:
    class Two(TwoLevelMixin, trl.GRPOTrainer):  # type: ignore[misc, name-defined]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    with pytest.raises(NotImplementedError, match="GRPOTrainer, whose loss is no function"):
        Two(upper_dataset=0.5)
