"""Adapters that take no part in what a model computes, and models trained only in part."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from adapters import BiLoraConfig, levels, two_level
from adapters.glue.soundness import refuse_unused


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x))


def adapted(*targets: str) -> nn.Module:
    return get_peft_model(Encoder(), LoraConfig(r=2, target_modules=list(targets)))


def test_the_fused_path_leaves_out_what_is_refused() -> None:
    """The oracle: outputs in evaluation mode with and without a large adapter are the same."""
    model = adapted("linear1").eval()
    x = torch.randn(1, 3, 4)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(p, 3.0)
    with torch.no_grad(), model.disable_adapter():
        without = model(x)
    with torch.no_grad():
        assert torch.allclose(model(x), without)
    with pytest.raises(ValueError, match=r"layer.linear1, whose adapter the fused path"):
        refuse_unused(model)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        refuse_unused(model)
        with torch.no_grad():
            assert not torch.allclose(model(x), without)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    refuse_unused(adapted("head"))


def test_an_adapter_on_out_proj_is_refused() -> None:
    with pytest.raises(ValueError, match=r"out_proj, whose adapter nn.MultiheadAttention never"):
        refuse_unused(adapted("out_proj"))


def test_merged_adapters_are_not_trained_on() -> None:
    model = get_peft_model(Encoder(), BiLoraConfig(r=2, target_modules=["head"]))
    levels(model)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into its weights.*unmerge_adapter"):
        levels(model)
    model.unmerge_adapter()
    levels(model)


@pytest.mark.parametrize(
    "task_type, dtype, says",
    [
        (None, torch.float32, "'classifier', the head of .* is frozen.*task_type=TaskType.SEQ_CLS"),
        ("SEQ_CLS", torch.float16, "is float16, which ends at 65504"),
        ("SEQ_CLS", torch.float32, None),
    ],
)
def test_a_frozen_head_and_float16_weights_are_said(
    task_type: str | None, dtype: torch.dtype, says: str | None
) -> None:
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    base = BertForSequenceClassification(config).to(dtype)
    model = get_peft_model(
        base, BiLoraConfig(r=2, target_modules=["query"], task_type=task_type)
    ).train()
    split, batches = levels(model), [torch.tensor([[1, 2]])]

    def build() -> None:
        two_level(
            model,
            loss=lambda ids: model(input_ids=ids).logits.float().square().mean(),
            upper_batches=batches,
            lower_batches=batches,
            upper_optimizer=torch.optim.SGD(split.upper, 0.1),
            lower_optimizer=torch.optim.SGD(split.lower, 0.1),
        )

    if says is None:
        build()
    else:
        with pytest.warns(UserWarning, match=says):
            build()
