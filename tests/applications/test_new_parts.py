"""What a checkpoint lacks is trained, saved and found again; nothing stays random."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, TaskType
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaModel

from applications.errors import UsageError
from applications.families.generation import TextGeneration
from applications.models.adapting import adapter_config, put_on
from applications.models.loading import load_pretrained
from applications.options.arguments import AdapterOptions, ModelOptions
from tests.applications.tiny_runs import Run, run
from tests.applications.tiny_writers import tokenizer

SIZES: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0}
BERT = {**SIZES, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BASES: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "bert without pooler": (
        *("BertConfig", "BertForMaskedLM", {**BERT, "intermediate_size": 16}),
        ["bert.pooler", "classifier"],
    ),
    "deberta": (
        *("DebertaV2Config", "DebertaV2Model", {**BERT, "intermediate_size": 16}),
        ["classifier", "pooler"],
    ),
    "distilbert": (
        *("DistilBertConfig", "DistilBertModel"),
        {**SIZES, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
        ["classifier", "pre_classifier"],
    ),
    "xlnet": (
        *("XLNetConfig", "XLNetModel"),
        {"vocab_size": 40, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16},
        ["logits_proj", "sequence_summary"],
    ),
    "bart": (
        *("BartConfig", "BartModel"),
        {
            **SIZES,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
        },
        ["classification_head"],
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_all_that_is_new_is_trained_and_saved(name: str, tiny_model: str, tmp_path: Path) -> None:
    config, kind, sizes, new = BASES[name]
    place = str(tmp_path)
    getattr(transformers, kind)(getattr(transformers, config)(**sizes)).save_pretrained(place)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(place)
    base, _ = load_pretrained(AutoModelForSequenceClassification, ModelOptions(place), num_labels=3)
    assert base.new_parts == new
    untouched = {id(p) for part in new for p in base.get_submodule(part).parameters()}
    options = AdapterOptions(method="lora", lora_target_modules=["all-linear"])
    adapter: Any = adapter_config(options, TaskType.SEQ_CLS, num_steps=1)
    model = put_on(base, adapter, options.lora_target_modules)
    assert not any(p.requires_grad for p in model.parameters() if id(p) in untouched)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 4)
    model.save_pretrained(str(tmp_path / "adapter"))
    torch.manual_seed(1)
    again, _ = load_pretrained(
        AutoModelForSequenceClassification, ModelOptions(place), num_labels=3
    )
    loaded = PeftModel.from_pretrained(again, str(tmp_path / "adapter"))
    tokens = {"input_ids": torch.tensor([[2, 9, 3]]), "attention_mask": torch.ones(1, 3).long()}
    torch.testing.assert_close(loaded.eval()(**tokens).logits, model.eval()(**tokens).logits)


def test_a_run_on_a_bert_without_pooler_is_loaded_with_its_numbers(
    tiny: Run, tiny_model: str, tiny_data: Path, tmp_path: Path
) -> None:
    place = str(tmp_path / "base")
    transformers.BertForMaskedLM.from_pretrained(tiny_model).save_pretrained(place)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(place)
    summary, folder = run(tiny("lora", "--model", place, "--max_steps", "2"))
    base = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3)
    model = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    rows = [line.split(",") for line in (tiny_data / "test.csv").read_text().splitlines()[1:]]
    batch = AutoTokenizer.from_pretrained(place)(
        [text for text, _ in rows], padding=True, return_tensors="pt"
    )
    labels = torch.tensor([("animals", "food", "tools").index(label) for _, label in rows])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
    assert loss.item() == pytest.approx(summary["test_loss"], rel=1e-5)


def test_a_checkpoint_that_cannot_write_is_refused(tmp_path: Path) -> None:
    made = tokenizer("llama")
    made.save_pretrained(str(tmp_path))
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    LlamaModel(config).save_pretrained(str(tmp_path))
    task: Any = None
    with pytest.raises(UsageError, match="holds no weights for lm_head"):
        TextGeneration().load_base(ModelOptions(str(tmp_path)), task)
