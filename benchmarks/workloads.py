"""Training problems of real shapes: an engine for each, given the lower problem's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from blo import Context, Engine, Method, Point, Problem, ProblemGraph
from blo.batches import to_device
from blo.derivatives.lower import LowerObjective
from blo.derivatives.random_state import RandomState
from blo.evaluation import ModuleObjective
from blo.linear.tensors import detach


@dataclass(frozen=True)
class Workload:
    """An engine that trains, and its plain lower gradient: the unit of cost."""

    engine: Engine
    gradient: Callable[[], object]

    def context(self) -> Context:
        """The lower problem on one batch, as methods see it."""
        graph = self.engine.graph
        upper, lower = graph["upper"], graph["lower"]
        objective = ModuleObjective(
            space=graph.space,
            upper=upper.parameters,
            lower=lower.parameters,
            loss=lower.loss,
            batch=to_device(next(iter(lower.batches)), lower.device),
            random_state=RandomState.capture([lower.device]),
            autocast=None,
            name="lower",
        )
        point = Point(detach(upper.parameters), detach(lower.parameters))
        return Context(LowerObjective((objective,)), after=point, before=point)


def meta_weight_net(method: Method, steps: int = 1, device: str = "cpu") -> Workload:
    """Meta-Weight-Net on an MLP 64-512-512-512-10 with batches of 100: a small network above turns
    each example's loss into its weight (Shu et al., 2019, arXiv:1902.07379).
    """
    torch.manual_seed(0)
    layers = [64, 512, 512, 512]
    net = nn.Sequential(
        *(m for i, o in pairwise(layers) for m in (nn.Linear(i, o), nn.ReLU())),
        nn.Linear(512, 10),
    ).to(device)
    weigh = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid()).to(device)

    def upper(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    def lower(batch: tuple[Tensor, Tensor]) -> Tensor:
        each = nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")
        return (weigh(each.detach().unsqueeze(1)).squeeze(1) * each).mean()

    batches = [(torch.randn(100, 64), torch.randint(10, (100,))) for _ in range(4)]
    return _workload(net, weigh, upper, lower, batches, method, steps)


def small_perceptron(method: Method, steps: int = 1, device: str = "cpu") -> Workload:
    """A network of 200 weights, an example weight each above: overhead shows here."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).to(device)
    weights = nn.ParameterDict({"logits": torch.zeros(32)}).to(device)

    def upper(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    def lower(batch: tuple[Tensor, Tensor]) -> Tensor:
        each = nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")
        return (weights["logits"].sigmoid() * each).mean()

    batches = [(torch.randn(32, 12), torch.randint(3, (32,))) for _ in range(4)]
    return _workload(net, weights, upper, lower, batches, method, steps)


def bilora_minilm(method: Method, steps: int = 1, device: str = "cpu") -> Workload:
    """BiLoRA of rank 8 on queries and values of a BERT of MiniLM's shape (6 x 384, random weights),
    batches of 16 x 64 tokens.
    """
    import transformers
    from peft import get_peft_model

    from adapters import BiLoraConfig, levels, two_level

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    base = transformers.BertForSequenceClassification(config)
    adapter = BiLoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
    model = get_peft_model(base, adapter).train().to(device)
    batches = [
        {
            "input_ids": torch.randint(1000, 30000, (16, 64)),
            "attention_mask": torch.ones(16, 64, dtype=torch.long),
            "labels": torch.randint(2, (16,)),
        }
        for _ in range(2)
    ]
    split = levels(model)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss

    graph = two_level(
        model,
        loss=loss,
        upper_batches=batches[:1],
        lower_batches=batches[1:],
        upper_optimizer=torch.optim.AdamW(split.upper, 1e-3),
        lower_optimizer=torch.optim.AdamW(split.lower, 1e-4),
        method=method,
        steps=steps,
    )
    batch = {k: v.to(device) for k, v in batches[1].items()}
    return Workload(Engine(graph), lambda: torch.autograd.grad(loss(batch), split.lower))


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "200-weight MLP": small_perceptron,
    "Meta-Weight-Net": meta_weight_net,
    "BiLoRA, MiniLM shape": bilora_minilm,
}


def _workload(
    net: nn.Module,
    above: nn.Module,
    upper: Callable[..., Tensor],
    lower: Callable[..., Tensor],
    batches: list[tuple[Tensor, Tensor]],
    method: Method,
    steps: int,
) -> Workload:
    """Return the workload of a network with SGD below and Adam above."""
    modules, parameters = [net, above], list(net.parameters())
    graph = ProblemGraph(
        [
            Problem(
                "upper", upper, modules, torch.optim.Adam(above.parameters(), 1e-3), batches[:2]
            ),
            Problem(
                "lower",
                lower,
                modules,
                torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
                batches[2:],
                steps=steps,
                method=method,
            ),
        ]
    )
    batch = tuple(t.to(parameters[0].device) for t in batches[2])
    return Workload(Engine(graph), lambda: torch.autograd.grad(lower(batch), parameters))
