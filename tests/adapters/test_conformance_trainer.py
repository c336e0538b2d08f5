"""The adapters under ``transformers.Trainer``: one level, its own checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from adapters import BiDoraConfig, levels
from tests.adapters.models import adapted, base_model, inputs, output


class Examples(Dataset[dict[str, Tensor]]):
    """Twelve labelled sentences."""

    def __init__(self) -> None:
        batches = [inputs("bert", seed) for seed in (30, 31)]
        self.columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[index] for key, values in self.columns.items()}


def train(model: PeftModel, folder: Path, *, steps: int, resume: bool | str = False) -> Trainer:
    """The trainer after so many steps; saves after the second."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-2,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(model, TrainingArguments(**settings), train_dataset=Examples())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# transformers' own: its progress callback and its saved random state.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
# BiLoRA's forms differ in their values, not in what is saved, but for the tied one.
@pytest.mark.parametrize("method", ["softmax", "tied", "autolora", "sora", "bidora", "dropout"])
def test_a_resumed_trainer_ends_where_the_whole_run_does(method: str, tmp_path: Path) -> None:
    whole = adapted("bert", method)
    start = {name: p.detach().clone() for name, p in whole.named_parameters()}
    train(whole, tmp_path / "whole", steps=4)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    resumed = adapted("bert", method, moved=0.7)  # whatever it held is replaced
    train(resumed, tmp_path / "part", steps=4, resume=str(tmp_path / "part" / "checkpoint-2"))
    found = dict(resumed.named_parameters())
    split = levels(whole)
    for name, p in whole.named_parameters():
        assert torch.equal(found[name], p), name
        assert torch.equal(p, start[name]) == (name not in split.upper_names + split.lower_names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", ["softmax", "bidora", "dropout"])
def test_a_trainers_checkpoint_is_an_adapter(method: str, tmp_path: Path) -> None:
    model = adapted("bert", method)
    train(model, tmp_path, steps=2)
    path = tmp_path / "checkpoint-2"
    settings = BiDoraConfig.from_pretrained(path) if method == "bidora" else None
    loaded = PeftModel.from_pretrained(base_model("bert"), path, config=settings)
    batch = inputs("bert")
    torch.testing.assert_close(
        output(loaded, batch), output(model.eval(), batch), rtol=1e-6, atol=1e-6
    )
