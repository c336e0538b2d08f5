"""What make demo runs."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from applications.carried import HEADLINES_PACKAGE
from applications.demo import main
from applications.models import soundness
from applications.options.completion import completed
from applications.runs.kept import once, same_options
from applications.runs.noise import noise
from applications.weighting.demo import (
    SHIFTED,
    SHUFFLED,
    SIZE,
    SOURCES,
    TESTED,
    TRUSTED,
    conclusion,
    headlines,
    labelled,
)
from tests.applications.tiny_runs import FAMILY, Run, run

carried = pytest.mark.skipif(
    find_spec(HEADLINES_PACKAGE) is None, reason=f"{HEADLINES_PACKAGE} is missing"
)


def test_noise_is_half_the_interval_of_a_difference_of_proportions() -> None:
    bins = [{"count": 60}, {"count": 40}]
    first, second = ({"test_metric": p, "reliability": bins} for p in (0.5, 0.8))
    assert noise(first, second) == pytest.approx(1.96 * (0.0025 + 0.0016) ** 0.5)


def test_a_finished_run_is_not_run_again_and_an_interrupted_one_goes_on(tiny: Run) -> None:
    asked: list[bool] = []

    def train(options):
        asked.append(options.run.resume)
        return run(options)[0]

    options = completed(tiny("lora", "--max_steps", "2"), FAMILY)
    first = once(options, train)
    assert once(options, train) == first
    assert asked == [False]
    mark = Path(str(options.run.output_dir)) / "mark.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"finished": None}))
    assert once(options, train)["test_metric"] == first["test_metric"]
    other = completed(tiny("lora", "--max_steps", "3"), FAMILY)
    assert once(other, train)["num_lower_steps"] == 3
    assert asked == [False, True, False]
    file = Path(str(other.run.output_dir)) / "config.json"
    known = json.loads(file.read_text())
    assert same_options(other, file)
    file.write_text(json.dumps({name: known[name] for name in known if name != "lora_r"}))
    assert not same_options(other, file)  # of a version without the option


@pytest.mark.parametrize(
    "dropped, expected",
    [
        ((SHIFTED, SHUFFLED), f"Dropped: {SHIFTED} and {SHUFFLED}, the two mislabelled ones."),
        ((SHIFTED, "wire"), f"Dropped: {SHIFTED} and wire, of which mislabelled: {SHIFTED}."),
        ((), "Dropped: none, of which mislabelled: none."),
    ],
)
def test_the_demo_says_which_sources_it_dropped(dropped: tuple[str, ...], expected: str) -> None:
    weights = {name: {"weight": 0.0 if name in dropped else 1.5} for name in SOURCES}
    bins = [{"count": 100}]
    accuracies = {"weights": 0.9, "union": 0.8, "two_stage": 0.85}
    summaries = {n: {"test_metric": v, "reliability": bins} for n, v in accuracies.items()}
    said = conclusion(weights, summaries)
    assert expected in said
    assert "+10.0 points against the union, +5.0 against two-stage" in said


@carried
def test_the_headlines_are_disjoint_and_mislabelled_where_it_is_said() -> None:
    parts = headlines()
    sizes = dict.fromkeys(SOURCES, SIZE) | {"trusted": TRUSTED, "test": TESTED}
    assert {name: len(rows) for name, rows in parts.items()} == sizes
    texts = [text for rows in parts.values() for text, _ in rows]
    assert len(set(texts)) == len(texts)
    right = dict(labelled())
    agreeing = {name: sum(right[text] == label for text, label in parts[name]) for name in sizes}
    assert agreeing[SHIFTED] == 0
    assert 10 <= agreeing["resale"] <= 35  # a fifth of a hundred by chance
    assert all(agreeing[name] == sizes[name] for name in sizes if name not in ("crawl", "resale"))


@carried
def test_the_demo_shows_both_halves_and_a_second_time_trains_nothing(
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soundness, "MOST_UNKNOWN", 1.0)  # a tiny vocabulary
    words = ["--model", tiny_model, "--max_steps", "2", "--max_eval_samples", "20"]
    words += ["--output_dir", str(tmp_path)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    for name in ("lora", "bilora", "weights", "union", "two_stage"):
        assert (tmp_path / name / "summary.json").is_file()
    assert shown.count("-> ") == 2
    weights = json.loads((tmp_path / "weights" / "weights.json").read_text())["sources"]
    row = next(line for line in shown.splitlines() if line.startswith(f"│ {SHIFTED} "))
    assert f"{weights[SHIFTED]['weight']:.2f}" in row
    assert "learning rate" in shown
    assert main(words) == 0
    again = capsys.readouterr().out
    assert "learning rate" not in again
    assert [line for line in again.splitlines() if line.startswith("│")] == [
        line for line in shown.splitlines() if line.startswith("│")
    ]
