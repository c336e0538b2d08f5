"""BiLoRA on a Hugging Face model: singular vectors fit one part of the data, values the other."""

import sys

import torch
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adapters import BiLoraConfig, Orthogonality, export_lora, levels, two_level
from blo import Engine, darts

torch.manual_seed(0)
name = sys.argv[1] if len(sys.argv) > 1 else "roberta-base"
tokenizer = AutoTokenizer.from_pretrained(name)
base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
config = BiLoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
model = get_peft_model(base, config).train()

texts = ["a joy to watch", "dull and far too long", "warm and funny", "a waste of time"]
batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
batch["labels"] = torch.tensor([1, 0, 1, 0])
split = levels(model)
graph = two_level(
    model,
    loss=lambda batch: model(**batch).loss,
    lower_batches=[{k: v[:2] for k, v in batch.items()}],
    upper_batches=[{k: v[2:] for k, v in batch.items()}],
    lower_optimizer=torch.optim.AdamW(split.lower, lr=1e-3),
    upper_optimizer=torch.optim.AdamW(split.upper, lr=1e-2),
    method=darts(),
    penalty=Orthogonality(1e-4),
)
for record in Engine(graph).rounds(10):
    print(record.round, {k: round(v, 4) for k, v in record.losses.items()})
export_lora(model, "bilora-as-lora")
