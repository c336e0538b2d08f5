"""The engine on a Hugging Face BERT with its default, fused attention."""

import pytest
import torch
from oracles import relative_error

from blo import Engine, Problem, ProblemGraph, cg, darts, f2sa, neumann, pbgd, t1t2

transformers = pytest.importorskip("transformers")


def received(method, attention, *, dropout=0.0, checkpointing=False, batch_type=dict):
    """The hypergradients of two rounds: gains of the embeddings above a BERT's queries."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=3, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, attn_implementation=attention,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).double().train()
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.requires_grad_(False)
    norm = model.bert.embeddings.LayerNorm
    upper = [norm.weight.requires_grad_()]
    lower = [p.requires_grad_() for n, p in model.named_parameters() if "query" in n]
    batches = [
        batch_type({
            "input_ids": torch.randint(60, (4, 7)),
            "attention_mask": torch.ones(4, 7, dtype=torch.long).tril(3),
            "labels": torch.randint(3, (4,)),
        })
        for _ in range(2)
    ]  # fmt: skip
    optimizer = torch.optim.SGD(upper, lr=0.5)
    grads = []
    optimizer.register_step_pre_hook(lambda *_: grads.append(norm.weight.grad.clone()))
    graph = ProblemGraph(
        [
            Problem("upper", lambda b: model(**b).loss, model, optimizer, batches[:1]),
            Problem("lower", lambda b: {"loss": model(**b).loss}, model,
                    torch.optim.AdamW(lower, lr=0.1), batches[1:], method=method),
        ]
    )  # fmt: skip
    torch.manual_seed(1)
    Engine(graph).run(2)
    return torch.stack(grads)


METHODS = [
    darts(),
    t1t2(),
    cg(3, damping=1.0),
    neumann(2, scale=0.1),
    f2sa(3, damping=1.0),
    pbgd(num_steps=2),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_default_attention_gives_the_same_hypergradients_as_eager(method):
    value = received(method, "sdpa")
    assert relative_error(value, received(method, "eager")) < 1e-6
    assert float(value.abs().max()) > 0


def test_premise_default_attention_has_no_second_derivative():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    import blo.derivatives.graphs as graphs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "sdpa_kernel", lambda _: sdpa_kernel(list(
            {SDPBackend.MATH, SDPBackend.FLASH_ATTENTION}
        )))  # fmt: skip
        with pytest.raises(RuntimeError, match="without a second derivative"):
            received(cg(3, damping=1.0), "sdpa")
        assert bool(torch.isfinite(received(darts(), "sdpa")).all())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_dropout_and_activation_checkpointing_change_nothing_in_the_numbers(method):
    plain = received(method, "sdpa", dropout=0.1)
    checkpointed = received(method, "sdpa", dropout=0.1, checkpointing=True)
    assert relative_error(checkpointed, plain) < 1e-12


def test_a_batch_encoding_is_a_batch():
    value = received(darts(), "sdpa", batch_type=transformers.BatchEncoding)
    assert torch.equal(value, received(darts(), "sdpa"))
