"""BiLoRA in transformers' Trainer: singular vectors fit a part of the data, values the rest."""

import sys

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from adapters import BiLoraConfig, Orthogonality
from adapters.trainer import TwoLevelTrainer

torch.manual_seed(0)
name = sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2"
tokenizer = AutoTokenizer.from_pretrained(name)
base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
config = BiLoraConfig(task_type="SEQ_CLS", r=8, values="real", target_modules=["query", "value"])

texts = ["a joy to watch", "dull and far too long", "warm and funny", "a waste of time"] * 20
data = Dataset.from_dict({"text": texts, "labels": [1, 0, 1, 0] * 20})
data = data.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns="text")
trainer = TwoLevelTrainer(
    get_peft_model(base, config),
    TrainingArguments("two-level-run", max_steps=30, learning_rate=2e-3, logging_steps=10),
    train_dataset=data,
    upper_dataset=0.2,  # this share of train_dataset, or a dataset of its own
    processing_class=tokenizer,
    penalty=Orthogonality(1e-4),
)
trainer.train()
for log in trainer.state.log_history[:-1]:
    print(log["step"], f"lower {float(log['loss']):.4f}, upper {log['upper_loss']:.4f}")
