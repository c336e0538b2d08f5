"""BiLoRA in TRL's SFTTrainer, on a small Llama without weights of its own."""

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters import BiLoraConfig
from adapters.trainer import TwoLevelMixin


class TwoLevelSFTTrainer(TwoLevelMixin, trl.SFTTrainer):
    """The mixin comes first; preference trainers are made two-level in the same way."""


torch.manual_seed(0)
words = ["<pad>", "</s>", "<unk>", "to", "be", "or", "not", "that", "is", "the", "question"]
vocabulary = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, **special)
llama = LlamaConfig(
    vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=1,
)  # fmt: skip
trainer = TwoLevelSFTTrainer(
    LlamaForCausalLM(llama),
    trl.SFTConfig("sft-run", max_steps=20, learning_rate=2e-2, logging_steps=10, use_cpu=True),
    train_dataset=Dataset.from_dict({"text": ["to be or not to be"] * 32}),
    upper_dataset=Dataset.from_dict({"text": ["to be or not to be that is the question"] * 16}),
    processing_class=tokenizer,
    peft_config=BiLoraConfig(r=4, values="real", target_modules=["q_proj", "v_proj", "up_proj"]),
)
trainer.train()
for log in trainer.state.log_history[:-1]:
    print(log["step"], f"lower {float(log['loss']):.4f}, upper {log['upper_loss']:.4f}")
