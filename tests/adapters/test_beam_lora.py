"""BeamLoRA against plain LoRA, values worked out by hand, and its move written a second time."""

import copy
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from adapters import BeamLoraConfig, BeamSearch, levels, singular_values, two_level
from adapters.methods.beam_lora import pruned_ranks
from blo import Engine, soba
from tests.adapters.models import inputs, mlp, move, output

TARGETS = {"target_modules": ["first", "second"]}


def adapted(r: int = 4, **options: Any) -> PeftModel:
    torch.manual_seed(4)
    return get_peft_model(mlp(), BeamLoraConfig(**{"r": r, "lora_alpha": 8, **TARGETS, **options}))


def adam(model: PeftModel) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, 0.02, weight_decay=0.0)


def step(model: PeftModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    x = inputs("mlp", seed)["x"]
    (model(x) - 2 * x[:, :3].sin()).square().mean().backward()
    optimizer.step()


def state(model: PeftModel) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def test_with_equal_scores_it_is_lora() -> None:
    model = move(adapted(), 0.3)
    reference = get_peft_model(mlp(), LoraConfig(r=4, lora_alpha=8, **TARGETS))
    named = dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(named[name])
    for layer in (model.base_model.model.first, model.base_model.model.second):
        layer.lora_diagonal["default"].data.fill_(0.25)
    assert torch.equal(output(model, inputs("mlp")), output(reference, inputs("mlp")))


def test_ranks_of_all_modules_are_pruned_together() -> None:
    values = [torch.tensor([2.4, 0.9, 0.5, 0.2]), torch.tensor([1.1, 1.05, 0.95, 0.9])]
    for share, flat in ((0.8, [2, 3, 7]), (0.9, [2, 3, 7]), (0.95, [2, 3]), (0.99, [3]), (1.0, [])):
        found = pruned_ranks(values, share)
        assert [*found[0], *(4 + rank for rank in found[1])] == flat


def test_the_share_is_annealed_by_a_cosine() -> None:
    model = adapted()
    search = BeamSearch(adam(model), model, every=3000, num_steps=37_000, end=24_688)
    for at, expected in (
        (3000, 0.9518),
        (6000, 0.9569),
        (12_000, 0.9739),
        (18_000, 0.9915),
        (24_000, 0.9999),
        (24_689, 1.0),
    ):
        assert search.share(at) == pytest.approx(expected, abs=5e-5)


def test_a_move_changes_the_value_of_a_rank_that_took_no_part() -> None:
    model = adapted(r=3, target_modules=["first"])
    scores = model.base_model.model.first.lora_diagonal["default"]
    scores.data.copy_(0.05 * torch.tensor([0.70, 0.25, 0.05]).log())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0)
    moves: list[int] = []
    BeamSearch(optimizer, model, every=4, num_steps=8, top_p=0.96, end=10**6, on_move=moves.append)
    for seed in range(8):
        step(model, optimizer, seed)
    (found,) = singular_values(model).values()
    assert moves == [1]  # none in the last steps
    expected = torch.tensor([0.29973, 0.40053, 0.29973])
    torch.testing.assert_close(found / 3, expected, rtol=0, atol=1e-5)


def by_hand(every: int, num_steps: int, top_p: float, end: int, seed: int) -> dict[str, Tensor]:
    """The released training loop, with lists and numbers."""
    model = adapted(temperature=0.5)
    optimizer = adam(model)
    layers = [model.base_model.model.first, model.base_model.model.second]
    generator = torch.Generator().manual_seed(seed)
    snapshot: Any = None
    for global_step in range(num_steps):
        step(model, optimizer, global_step)
        tensors = [
            (
                one.lora_A["default"].weight,
                one.lora_B["default"].weight,
                one.lora_diagonal["default"],
            )
            for one in layers
        ]
        moments = [[optimizer.state[p] for p in one] for one in tensors]
        if global_step and global_step % every and global_step % (every // 2) == 0:
            snapshot = copy.deepcopy(([[p.data for p in one] for one in tensors], moments))
        k = global_step + 1
        if k % every or num_steps - k < every:
            continue
        p = 1 - (1 - top_p) * (1 + math.cos(math.pi * k / end)) / 2 if k <= end else 1.0
        shares = [(one[2].detach() / 0.5).softmax(0) * 4 for one in tensors]
        flat = sorted(
            ((float(w), m, i) for m, one in enumerate(shares) for i, w in enumerate(one)),
            key=lambda item: -item[0],
        )
        total, weak = 0.0, [[], []]  # type: ignore[var-annotated]
        for value, m, i in flat:
            total += value
            if total > p * 8 and p < 1:
                weak[m].append(i)
        for m, (A, B, g) in enumerate(tensors):
            best = sorted(range(4), key=lambda i, m=m: -float(shares[m][i]))[: len(weak[m])]
            best = [best[i] for i in torch.randperm(len(best), generator=generator)]
            for q, t in zip(sorted(weak[m]), best, strict=True):
                (old_A, old_B, _), old_moments = snapshot[0][m], snapshot[1][m]
                A.data[q], B.data[:, q] = old_A[t], old_B[:, t]
                for key in ("exp_avg", "exp_avg_sq"):
                    moments[m][0][key][q] = old_moments[0][key][t]
                    moments[m][1][key][:, q] = old_moments[1][key][:, t]
                g.data[[q, t]] = (g.data[q] + g.data[t]) / 2
            for key in ("exp_avg", "exp_avg_sq"):
                moments[m][2][key].zero_()
    return state(model)


def test_a_run_is_that_of_the_loop_by_hand_and_can_be_resumed() -> None:
    settings = {"every": 4, "num_steps": 16, "top_p": 0.7, "end": 40, "seed": 5}
    expected = by_hand(**settings)  # type: ignore[arg-type]
    moves: list[int] = []

    def start() -> tuple[PeftModel, torch.optim.Optimizer, BeamSearch]:
        model = adapted(temperature=0.5)
        optimizer = adam(model)
        search: Any = BeamSearch(optimizer, model, on_move=moves.append, **settings)  # type: ignore[arg-type]
        return model, optimizer, search

    model, optimizer, search = start()
    for seed in range(7):  # a snapshot is waiting for its move
        step(model, optimizer, seed)
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict(), search.state_dict()))
    for seed in range(7, 16):
        step(model, optimizer, seed)
    assert len(moves) == 3
    assert min(moves) > 0
    for name, value in state(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    again, optimizer, search = start()
    again.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    search.load_state_dict(kept[2])
    for seed in range(7, 16):
        step(again, optimizer, seed)
    assert all(torch.equal(value, state(again)[name]) for name, value in state(model).items())


def test_copies_part_only_where_they_come_from_the_past() -> None:
    def difference(past: bool) -> float:
        model = adapted(r=2, temperature=0.5, target_modules=["first"])
        optimizer = adam(model)
        layer = model.base_model.model.first
        layer.lora_diagonal["default"].data.copy_(torch.tensor([0.5, -0.5]))
        search = BeamSearch(optimizer, model, every=4, num_steps=100, top_p=0.95)
        for seed in range(4):
            if seed == 3 and not past:  # the snapshot is taken after step 3, the move is after 4
                search.remove()
            step(model, optimizer, seed)
        if not past:
            with torch.no_grad():
                search._snapshot = [search._taken(search._ranks[0])]
                search._move(0.95)
        for seed in range(5):
            step(model, optimizer, seed)
        A, B = (one["default"].weight.detach() for one in (layer.lora_A, layer.lora_B))
        return float((A[0] - A[1]).abs().max() + (B[:, 0] - B[:, 1]).abs().max())

    assert difference(past=False) == 0
    assert difference(past=True) > 1e-3


def test_on_two_levels_a_move_edits_the_scores_above_and_methods_start_anew() -> None:
    model = adapted(temperature=0.5, score_level="upper")
    split = levels(model)
    batches = [inputs("mlp", seed)["x"] for seed in (1, 2, 3)]
    upper, lower = torch.optim.Adam(split.upper, 0.05), torch.optim.SGD(split.lower, 0.1)
    graph = two_level(
        model,
        loss=lambda x: (model(x) - 2 * x[:, :3].sin()).square().mean(),
        upper_batches=batches[1:],
        lower_batches=batches[:1],
        upper_optimizer=upper,
        lower_optimizer=lower,
        method=soba(0.1),
    )
    engine = Engine(graph)
    seen: list[tuple[int, bool, float]] = []

    def forget(pruned: int) -> None:
        moments = [v for s in upper.state.values() for k, v in s.items() if k == "exp_avg"]
        seen.append(
            (pruned, bool(engine.method_states), max(float(v.abs().max()) for v in moments))
        )
        engine.method_states.clear()

    BeamSearch(
        lower,
        model,
        every=4,
        num_steps=12,
        top_p=0.5,
        end=99,
        score_optimizer=upper,
        on_move=forget,
    )
    before = [scores.detach().clone() for scores in split.upper]
    engine.run(9)
    assert [one[1:] for one in seen] == [(True, 0.0)] * 2
    assert all(pruned > 0 for pruned, *_ in seen)
    assert not any(torch.equal(new, old) for new, old in zip(split.upper, before, strict=True))


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="a single rank has nothing to be ranked with"):
        BeamLoraConfig(r=1)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        BeamLoraConfig(temperature=0.0)
    model = adapted()
    for options, message in (
        ({"every": 5}, "every must be even"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"end": 0}, "end must be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            BeamSearch(adam(model), model, **{"every": 4, "num_steps": 9, **options})  # type: ignore[arg-type]
    factors = [p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
    with pytest.raises(ValueError, match="optimizer must hold scores of"):
        BeamSearch(torch.optim.SGD(factors, 0.1), model, every=4, num_steps=9)
    with pytest.raises(ValueError, match="one level; with BeamLoraConfig"):
        levels(model)
    with pytest.raises(ValueError, match="no active BeamLoRA adapter"):
        BeamSearch(torch.optim.SGD(factors, 0.1), mlp(), every=4, num_steps=9)


def test_nothing_is_pruned_after_the_end_which_is_two_thirds_of_the_run() -> None:
    model = adapted()
    search = BeamSearch(adam(model), model, every=4, num_steps=33, top_p=0.5)
    assert search.end == 22
    assert search.share(11) == pytest.approx(0.75)
    assert [search.share(step) for step in (22, 23, 33, 44)] == [1.0] * 4  # the cosine comes back
