"""Which hypergradient methods cope with the curvature of a BiLoRA adapter, and with what damping.

``python -m benchmarks.adapter_curvature`` prints the table of ``docs/methods/bilora.md``;
``--markdown FILE`` writes it between the markers "curvature" of a file. A tiny BERT classifier with
random weights, BiLoRA of rank 2 on query and value, float64, one batch for each level. The lower
parameters are the factors and the head. The response ``-g_xy v`` of every method is compared with
that of ``(g_yy + damping I) v = c`` solved densely, and its direction with that of one lower step,
``v = c``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.func import functional_call

from adapters import BiLoraConfig, levels
from benchmarks.accuracy import write_between
from blo import GaussNewton, SplitLoss, cg, dense, hypergradient, minres, neumann, t1t2

DAMPINGS = (0.0, 1e-2, 1e-1, 1.0)
STEPS = {"start": 0, "trained": 300}
PRODUCTS = 50
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Row:
    """One method at one point with one damping."""

    point: str
    method: str
    damping: float | None
    status: str
    residual: float | None
    size: float
    error: float | None
    cosine: float


class Case:
    """The two losses of one model as functions of its two levels.

    Args:
        steps: full-batch Adam steps of the lower level, from an adapter with B = 0.
    """

    def __init__(self, *, steps: int) -> None:
        self.model = tiny_model()
        split = levels(self.model)
        self.names = [*split.upper_names, *split.lower_names]
        self.train, self.held_out = batch(1), batch(2)
        optimizer = torch.optim.Adam(split.lower, 1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(self.model(**self.train).logits, self.train_labels)
            loss.backward()
            optimizer.step()
        self.upper = tuple(p.detach() for p in split.upper)
        self.lower = tuple(p.detach() for p in split.lower)
        self.lower_loss = SplitLoss(
            outputs=lambda x, y: self.logits(x, y, self.train),
            loss=lambda z, x, y: F.cross_entropy(z, self.train_labels),
        )

    train_labels = torch.randint(3, (24,), generator=torch.Generator().manual_seed(3))

    def logits(self, upper: Tensors, lower: Tensors, given: dict[str, Tensor]) -> Tensor:
        values = dict(zip(self.names, [*upper, *lower], strict=True))
        value: Tensor = functional_call(self.model, values, kwargs=given).logits
        return value

    def upper_loss(self, upper: Tensors, lower: Tensors) -> Tensor:
        return F.cross_entropy(self.logits(upper, lower, self.held_out), self.train_labels)

    def response(self, method: Any) -> tuple[Tensor, Any]:
        found = hypergradient(
            self.upper_loss, self.lower_loss, self.upper, self.lower, method=method
        )
        parts = zip(found.grads, found.direct, strict=True)
        return torch.cat([(g - d).flatten() for g, d in parts]), found.info

    def spectrum(self) -> Tensor:
        """The eigenvalues of the lower Hessian, ascending."""
        sizes = [p.numel() for p in self.lower]

        def loss(flat: Tensor) -> Tensor:
            pieces = zip(flat.split(sizes), self.lower, strict=True)
            value: Tensor = self.lower_loss(self.upper, tuple(f.view_as(p) for f, p in pieces))
            return value

        flat = torch.cat([p.flatten() for p in self.lower])
        hessian = torch.autograd.functional.hessian(loss, flat)
        return torch.linalg.eigvalsh((hessian + hessian.T) / 2)


def tiny_model() -> PeftModel:
    """A BERT of one layer, 16 wide, its weights large enough that attention is not uniform."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, num_labels=3, initializer_range=0.3,
        attn_implementation="eager",
    )  # fmt: skip
    base = BertForSequenceClassification(settings).double()
    config = BiLoraConfig(
        r=2, lora_alpha=2, values="softmax", scale_by_rank=True, task_type="SEQ_CLS",
        target_modules=["query", "value"],
    )  # fmt: skip
    return get_peft_model(base, config)


def batch(seed: int) -> dict[str, Tensor]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(1, 40, (24, 8), generator=generator)}


def methods(damping: float) -> dict[str, Any]:
    return {
        "cg": cg(PRODUCTS, damping=damping),
        "minres": minres(PRODUCTS, damping=damping),
        "neumann": neumann(PRODUCTS, damping=damping),
        "cg, Gauss-Newton": cg(PRODUCTS, damping=damping, products=GaussNewton()),
        "dense": dense(damping=damping),
    }


def rows(point: str, case: Case) -> Iterator[Row]:
    """The measurements at one point."""
    step, _ = case.response(t1t2(1.0))
    for damping in DAMPINGS:
        reference, _ = case.response(dense(damping=damping))
        for name, method in methods(damping).items():
            value, info = case.response(method)
            vanishes = float(reference.norm()) < 1e-8
            yield Row(
                point,
                name,
                damping,
                "one step" if info.status is None else info.status.value,
                info.residual,
                float(value.norm()),
                None if vanishes else float((value - reference).norm() / reference.norm()),
                float(torch.cosine_similarity(value, step, dim=0)),
            )
    yield Row(point, "one step", None, "", None, float(step.norm()), None, 1.0)


def markdown() -> str:
    """The tables, one a point."""
    tables = []
    for point, steps in STEPS.items():
        case = Case(steps=steps)
        spectrum = case.spectrum()
        negative = int((spectrum < -1e-10).sum())
        where = "B = 0" if not steps else f"after {steps} lower steps of Adam"
        lines = [
            f"{point.capitalize()} ({where}): eigenvalues of the lower Hessian from "
            f"{spectrum[0]:.2g} to {spectrum[-1]:.2g}, {negative} of {len(spectrum)} negative, "
            f"{int((spectrum.abs() < 1e-10).sum())} zero.",
            "",
            "| method | damping | status | residual | size of the response | error against dense "
            "| cosine with one step |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {r.method} | {'' if r.damping is None else f'{r.damping:g}'} | {r.status} "
            f"| {shown(r.residual)} | {r.size:.1e} | {shown(r.error)} | {r.cosine:.2f} |"
            for r in rows(point, case)
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def shown(value: float | None) -> str:
    return "" if value is None else "< 1e-10" if value < 1e-10 else f"{value:.1e}"


def main() -> None:
    """Print the tables, or write them into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="write the tables into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = markdown()
    print(text)
    if options.markdown:
        write_between(options.markdown, "curvature", text)


if __name__ == "__main__":
    main()
