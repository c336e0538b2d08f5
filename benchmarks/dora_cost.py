"""BiDoRA's training step beside stock PEFT's LoRA and DoRA: time and saved activations.

``python -m benchmarks.dora_cost`` takes forward and backward passes through BERTs of several widths
(random weights; MiniLM's shape is 6 x 384) in turns and prints medians of processor time, the bytes
that autograd saves for the backward pass, each storage once, and of both what comes on top of LoRA
as a share of what stock DoRA adds.
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
# Layers, and rows of 64 tokens, by width.
SHAPES = {384: (6, 16), 768: (2, 8), 2048: (1, 4)}


def adapted(method: str, targets: list[str] | str, width: int = 384) -> PeftModel:
    """A BERT with an adapter of rank 8."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=width,
        num_hidden_layers=SHAPES[width][0],
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
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


def compare(width: int, targets: list[str] | str, repeats: int) -> None:
    """Measure the three at one width and print."""
    rows = SHAPES[width][1]
    batch = {
        "input_ids": torch.randint(1000, 30000, (rows, 64)),
        "labels": torch.randint(2, (rows,)),
    }
    models = {m: adapted(m, targets, width) for m in ("LoRA", "DoRA", "BiDoRA")}
    times: dict[str, list[float]] = {m: [] for m in models}
    for _ in range(repeats):
        for method, model in models.items():
            start = time.process_time()
            model(**batch).loss.backward()
            times[method].append(time.process_time() - start)
    seconds = {m: statistics.median(t) for m, t in times.items()}
    # By differences of neighbouring passes, since other work slows both.
    extra = {
        m: statistics.median(a - b for a, b in zip(t, times["LoRA"], strict=True))
        for m, t in times.items()
    }
    saved = {m: saved_bytes(model, batch) for m, model in models.items()}
    more = {m: s - saved["LoRA"] for m, s in saved.items()}
    print(f"{'method':>8} {'ms':>8} {'extra':>8} {'to DoRA':>8} {'saved MiB':>10} {'to DoRA':>8}")
    for m in models:
        print(
            f"{m:>8} {1e3 * seconds[m]:>8.0f} {1e3 * extra[m]:>8.1f} "
            f"{extra[m] / extra['DoRA']:>8.2f} {saved[m] / 2**20:>10.0f} "
            f"{more[m] / more['DoRA']:>8.2f}",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--widths", type=int, nargs="*", default=list(SHAPES), choices=SHAPES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for width in options.widths:
        for name, targets in TARGETS.items():
            print(f"\nwidth {width}, {name}")
            compare(width, targets, options.repeats)


if __name__ == "__main__":
    main()
