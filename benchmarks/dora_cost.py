"""BiDoRA's training step beside stock PEFT's LoRA and DoRA: time and saved activations.

``python -m benchmarks.dora_cost`` takes forward and backward passes through a BERT of MiniLM's
shape (6 x 384, random weights, 16 x 64 tokens) in turns and prints medians of processor time, and
the bytes that autograd saves for the backward pass, each storage once.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from adapters import BiDoraConfig

TARGETS = {"query, value": ["query", "value"], "query, key, value, dense": "all-linear"}


def adapted(method: str, targets: list[str] | str) -> PeftModel:
    """A BERT with an adapter of rank 8."""
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    config = transformers.BertConfig(intermediate_size=1536, **shape)
    base = transformers.BertForSequenceClassification(config)
    settings = {"task_type": "SEQ_CLS", "r": 8, "target_modules": targets}
    adapter = {
        "LoRA": lambda: LoraConfig(**settings),
        "DoRA": lambda: LoraConfig(use_dora=True, **settings),
        "BiDoRA": lambda: BiDoraConfig(**settings),
    }[method]()
    return get_peft_model(base, adapter).train()


def saved_bytes(model: PeftModel, batch: dict[str, Tensor]) -> int:
    """The bytes of the activations that one forward pass saves; parameters do not count."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(**batch)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = {"input_ids": torch.randint(1000, 30000, (16, 64)), "labels": torch.randint(2, (16,))}
    for name, targets in TARGETS.items():
        models = {m: adapted(m, targets) for m in ("LoRA", "DoRA", "BiDoRA")}
        times: dict[str, list[float]] = {m: [] for m in models}
        for _ in range(options.repeats):
            for method, model in models.items():
                start = time.process_time()
                model(**batch).loss.backward()
                times[method].append(time.process_time() - start)
        print(f"\n{name}")
        print(f"{'method':>8} {'ms':>8} {'to LoRA':>8} {'saved MiB':>10} {'to LoRA':>8}")
        first: tuple[float, int] | None = None
        for method, model in models.items():
            found = statistics.median(times[method]), saved_bytes(model, batch)
            first = first or found
            print(
                f"{method:>8} {1e3 * found[0]:>8.0f} {found[0] / first[0]:>8.2f} "
                f"{found[1] / 2**20:>10.0f} {found[1] / first[1]:>8.2f}"
            )


if __name__ == "__main__":
    main()
