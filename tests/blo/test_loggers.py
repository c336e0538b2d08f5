"""What callbacks are told, what they can say, and where records go."""

import json
import logging
import math
import sys

import pytest
import torch

from blo import Engine, Info, JsonLines, Problem, ProblemGraph, Status, Stop, TensorBoard, cg
from blo.record import Record


def engine(loss=None, **options):
    """One parameter y, halving its distance to 1 in every round."""
    y = torch.nn.ParameterList([torch.tensor(2.0)])
    fit = loss or (lambda _: (y[0] - 1) ** 2)
    sgd = torch.optim.SGD(y.parameters(), 0.25)
    return Engine(ProblemGraph([Problem("fit", fit, y, sgd, [None])]), **options), y


def test_stop_ends_the_run_after_the_round_and_the_other_callbacks_are_called():
    seen = []

    def third(record):
        if record.round == 3:
            raise Stop

    made, y = engine(callbacks=[third, lambda record: seen.append(record.round)])
    assert made.run(10).round == 3
    assert seen == [1, 2, 3]
    assert made.stopped
    assert y[0].item() == 1.125  # three updates, and no fourth was begun
    assert [record.round for record in made.rounds(2)] == [4, 5]
    assert not made.stopped


def test_a_loop_by_hand_can_see_that_it_was_to_stop():
    def always(record):
        raise Stop

    made, _ = engine(callbacks=[always])
    made.step("fit")
    assert made.stopped


def test_a_break_leaves_the_engine_between_two_rounds(tmp_path):
    made, _ = engine()
    for record in made.rounds(10):
        if record.round == 2:
            break
    made.save(tmp_path / "state.pt")
    assert made.run(1).round == 3


@pytest.mark.parametrize("where", ["loss", "callback"])
def test_a_stray_stop_iteration_says_where_it_came_from(where):
    end = lambda _: next(iter(()))
    if where == "callback":
        made, _ = engine(callbacks=[end])
    else:
        made, _ = engine()
        made.graph["fit"].loss = end
    with pytest.raises(RuntimeError, match=r"StopIteration was raised in round 1.*raise blo\.Stop"):
        made.run(1)


def test_a_truth_returned_by_a_callback_is_refused():
    made, _ = engine(callbacks=[lambda record: True])
    with pytest.raises(TypeError, match=r"returned True.*raise blo\.Stop"):
        made.run(1)


def test_entries_of_a_loss_that_are_no_numbers_are_named_once(caplog):
    y = torch.nn.ParameterList([torch.tensor(2.0)])

    def loss(_):
        logits = y[0] * torch.ones(2, 3)
        return {"loss": (y[0] - 1) ** 2, "logits": logits, "share": logits.mean(), "kind": "a"}

    sgd = torch.optim.SGD(y.parameters(), 0.25)
    made = Engine(ProblemGraph([Problem("fit", loss, y, sgd, [None])]))
    with caplog.at_level(logging.WARNING, "blo"):
        record = made.run(3)
    assert list(record.metrics["fit"]) == ["share"]
    told = [each.getMessage() for each in caplog.records]
    assert len(told) == 2
    assert "a tensor of shape (2, 3) as 'logits'" in told[0]
    assert "'a' as 'kind'" in told[1]


def record(**changes):
    info = Info("CG", "after", scale=(1.0, 2.0), status=Status.TRUNCATED, batches=(3,))
    found = {
        "round": 1,
        "losses": {"upper": 0.5},
        "metrics": {"upper": {"share": math.nan}},
        "responses": {"upper <- lower": info},
        "learning_rates": {"upper": math.inf},
        "num_gradients": 4,
        "num_products": 2,
    }
    return Record(**{**found, **changes})


def test_json_takes_a_record():
    found = json.loads(json.dumps(record().as_dict(), allow_nan=False))
    assert found["metrics"] == {"upper": {"share": None}}
    assert found["learning_rates"] == {"upper": None}
    info = found["responses"]["upper <- lower"]
    assert (info["status"], info["residual"], info["scale"]) == ("truncated", None, [1.0, 2.0])


@pytest.mark.parametrize(
    "status, residual, text",
    [
        (Status.TRUNCATED, 1e-5, "CG: residual 1e-05, 10 products, all that max_products=9 allow"),
        (Status.CONVERGED, 1e-9, "CG: residual 1e-09, converged after 10 products"),
        (Status.INDEFINITE, 0.5, "CG: residual 0.5, stopped at negative curvature after 10"),
        (Status.DIVERGED, math.nan, "CG: diverged after 10 products"),
    ],
)
def test_a_solve_is_told_in_words(status, residual, text):
    info = Info(repr(cg(9)), "after", status=status, residual=residual, num_products=10)
    assert str(info).startswith(text)


def test_json_lines_go_on_where_they_ended(tmp_path):
    path = tmp_path / "logs" / "rounds.jsonl"
    made, _ = engine(callbacks=[JsonLines(path)])
    made.run(2)
    made.callbacks = (JsonLines(path),)
    made.run(1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[1]["losses"] == {"fit": 0.25}


def test_tensorboard_gets_the_losses_by_round(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoard(tmp_path)
    made, _ = engine(callbacks=[log])
    made.run(2)
    log.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("losses/fit")] == [(1, 1.0), (2, 0.25)]


@pytest.mark.parametrize(
    "module, make, remedy",
    [
        ("tqdm", lambda _: engine(progress=True), "progress=True needs the package tqdm"),
        ("torch.utils.tensorboard", TensorBoard, "needs the package tensorboard"),
    ],
)
def test_a_package_that_is_missing_is_named(module, make, remedy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=remedy):
        make(tmp_path)


def test_progress_shows_a_bar_with_the_losses(monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **options):
            shown.append(options["total"])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            shown.append("closed")

        def set_postfix(self, losses, refresh):
            shown.append(losses)

        def update(self):
            shown.append("update")

    import tqdm.auto

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    made, _ = engine(progress=True)
    assert next(made.rounds(5)).round == 1
    made.run(1)
    assert shown == [5, {"fit": "1"}, "update", "closed", 1, {"fit": "0.25"}, "update", "closed"]
