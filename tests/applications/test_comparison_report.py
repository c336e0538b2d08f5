"""The numbers and the page of a comparison, on synthetic summaries."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from applications.comparison import figures
from applications.comparison.figures import pooled, styles, whole_steps
from applications.comparison.page import write_report
from applications.comparison.results import Gathered, gathered
from applications.comparison.statistics import mean_interval
from applications.comparison.summary import compared, direction, pairs, summarised, value
from applications.comparison.tables import clearly_ahead, headline
from applications.report import main
from tests.applications.synthetic_grids import VERSIONS, evaluation, put_run, summary

LORA = [0.70, 0.72, 0.74, 0.71, 0.73, 0.75]
GAINS = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]


def result(
    variant: str, seed: int, *, task: str = "sst2", size: str = "300", **changes: Any
) -> Any:
    labels = {"variant": variant, "task_label": task, "train_size_label": size}
    return summary(seed=seed, **changes) | labels


def two_variants(gains: list[float]) -> list[Any]:
    """lora, and other, whose test metric is higher by the gains."""
    found = []
    for seed, gain in enumerate(gains):
        found.append(result("lora", seed, test_metric=LORA[seed]))
        found.append(result("other", seed, test_metric=LORA[seed] + gain))
    return found


def test_runs_are_paired_by_task_train_size_and_seed() -> None:
    results = [
        result("lora", 0, test_metric=0.5),
        result("lora", 1, test_metric=0.9),
        result("lora", 0, task="cr", test_metric=0.2),
        result("lora", 0, size="1000", test_metric=0.3),
        result("other", 1, test_metric=0.8),
        result("other", 0, task="cr", test_metric=0.5),
        result("other", 0, size="1000", test_metric=0.7),
        result("other", 2, test_metric=0.0),
    ]
    found = compared(results, ("other", "lora"), "test_metric")
    assert found is not None
    assert (found["num_pairs"], found["num_tasks"]) == (3, 2)
    assert found["difference"] == pytest.approx((-0.1 + 0.3 + 0.4) / 3)
    assert (found["first_better"], found["ties"], found["second_better"]) == (2, 0, 1)
    assert compared(results, ("other", "dora"), "test_metric") is None


@pytest.mark.parametrize(
    "outcome, better",
    [
        ("test_metric", "other"),
        ("test_loss", "lora"),
        ("ece", "lora"),
        ("brier", "lora"),
        ("generalisation_gap", "lora"),
    ],
)
def test_more_is_better_in_the_test_metric_alone(outcome: str, better: str) -> None:
    results = []
    for seed, gain in enumerate(GAINS):
        results.append(result("lora", seed, **{outcome: LORA[seed]}))
        results.append(result("other", seed, **{outcome: LORA[seed] + gain}))
    for pair in (("other", "lora"), ("lora", "other")):
        found = compared(results, pair, outcome)
        assert found is not None
        assert found["difference"] * (1 if pair[0] == "other" else -1) == pytest.approx(0.035)
        assert found["better"] == better
        assert found["p_value"] == 2 / 2**6
        assert (found["first_better"] == 6) == (pair[0] == better)


def test_of_a_loss_as_metric_less_is_better_and_of_mixed_ones_nothing_is_said() -> None:
    losses = [result("lora", 0, metric_name="perplexity")]
    assert direction("test_metric", losses) == -1
    assert direction("generalisation_gap", losses) == 1
    mixed = [*losses, result("lora", 0, task="cr")]
    assert direction("test_metric", mixed) is None
    assert compared(mixed, ("lora", "other"), "test_metric") is None
    assert direction("test_loss", mixed) == -1


def test_no_variant_is_better_where_the_interval_holds_zero() -> None:
    found = compared(
        two_variants([0.01, -0.02, 0.03, 0.0, -0.01, 0.02]), ("other", "lora"), "test_metric"
    )
    assert found is not None
    low, high = found["interval"]
    assert low < 0 < high
    assert found["better"] is None
    assert found["num_zeros"] == 1


def test_a_task_and_train_size_is_a_cell_of_the_interval() -> None:
    """Differences that lie apart between the sizes and near each other within them."""
    gains = {"300": [0.10, 0.11, 0.12, 0.13], "1000": [0.30, 0.31, 0.32, 0.34]}
    results = []
    for size, cell in gains.items():
        for seed, gain in enumerate(cell):
            results.append(result("lora", seed, size=size, test_metric=0.5))
            results.append(result("other", seed, size=size, test_metric=0.5 + gain))
    found = compared(results, ("other", "lora"), "test_metric")
    assert found is not None
    expected = mean_interval(list(gains.values()))
    assert expected.low is not None
    assert expected.high is not None
    assert found["interval"] == pytest.approx([expected.low, expected.high])
    assert expected.high - expected.low < 0.05


def test_a_cell_holds_the_runs_of_its_own_size_and_variant() -> None:
    results = [
        result(variant, seed, size=size, test_metric=0.01 * n, num_gradients=n)
        for n, (variant, size, seed) in enumerate(
            (v, s, k) for v in ("lora", "other") for s in ("300", "all", "1000") for k in (0, 1)
        )
    ]
    found = summarised(Gathered(results))["cells"]
    told = [(c["variant"], c["train_size"], c["costs"]["num_gradients"]["mean"]) for c in found]
    # Of each size, smallest first, first lora's runs.
    assert told == [
        *(("lora", "300", 0.5), ("other", "300", 6.5)),
        *(("lora", "1000", 4.5), ("other", "1000", 10.5)),
        *(("lora", "all", 2.5), ("other", "all", 8.5)),
    ]
    means = [cell["final"]["test_metric"]["mean"] for cell in found]
    assert means == pytest.approx([0.01 * gradients for _, _, gradients in told])


def test_the_headline_is_the_mean_over_cells_and_a_leader_leads_all() -> None:
    """Three runs in one cell and two in another: each cell counts the same."""
    results = []
    for place, variant in enumerate(("low", "middle", "top"), start=1):
        for task, scores in (("sst2", (0.5, 0.51, 0.52)), ("cr", (0.7, 0.72))):
            for seed, score in enumerate(scores):
                own = 0.1 * place + 0.001 * (seed * place % 4)
                results.append(result(variant, seed, task=task, test_metric=score + own))
    found = Gathered(results)
    table = headline(found, summarised(found), "low")
    texts = [row[2].text.splitlines()[0] for row in table.rows]
    for text, variant in zip(texts, found.variants, strict=True):
        cells = [
            [r["test_metric"] for r in results if (r["variant"], r["task_label"]) == (variant, t)]
            for t in ("sst2", "cr")
        ]
        assert float(text) == pytest.approx(sum(sum(c) / len(c) for c in cells) / 2, abs=6e-4)
    assert clearly_ahead(found, ("sst2", "300"), "final") == "top"
    level = [r for r in results if r["variant"] != "top"]
    level += [
        result("twin", r["seed"], task=r["task_label"], test_metric=r["test_metric"])
        for r in level
        if r["variant"] == "middle"
    ]
    assert clearly_ahead(Gathered(level), ("sst2", "300"), "final") is None


def test_figures_tell_means_over_seeds_of_cost_quality_and_curves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[tuple[list[float], list[float], list[str]]] = []
    monkeypatch.setattr(
        figures, "tell", lambda axes, xs, ys, texts: said.append((list(xs), list(ys), list(texts)))
    )
    results = [
        result("lora", seed, test_metric=0.5 + seed, num_gradients=10 + seed, wall_seconds=100.0)
        for seed in (0, 2, 4)
    ]
    lines = {
        ("sst2", "300", "lora", seed): [
            evaluation(10, 40, loss=1.0 + seed, accuracy=0.1 * seed),
            *([evaluation(20, 80, loss=9.0, accuracy=0.9)] if seed == 0 else []),
        ]
        for seed in (0, 2, 4)
    }
    found = Gathered(results, curves=lines)
    figures.costs(found, ("sst2", "300"))
    assert [(xs, ys) for xs, ys, _ in said] == [([12.0], [2.5]), ([100.0], [2.5])]
    assert said[0][2][0].endswith("gradient units 12\ntest accuracy 2.5 \u00b1 2")
    said.clear()
    figures.curves(found, ("sst2", "300"))
    # Lower steps, then gradient units; metric, then loss. Of three seeds one is not enough.
    expected = [([10.0], [0.2]), ([10.0], [3.0]), ([40.0], [0.2]), ([40.0], [3.0])]
    for (xs, ys, _), (x, y) in zip(said, expected, strict=True):
        assert (xs, ys) == (x, pytest.approx(y))


def test_the_reference_is_that_of_the_last_invocation_that_has_results() -> None:
    results = [result(variant, 0) for variant in ("lora", "dora")]
    lines = [{"methods": [], "reference": name} for name in ("lora", "dora", None)]
    assert Gathered(results, invocations=lines).reference == "dora"
    assert Gathered(results[:1], invocations=lines).reference is None
    assert Gathered(results, invocations=lines[::2]).reference == "lora"


def test_selected_numbers_are_those_of_the_selected_step() -> None:
    selected = {"train_metric": 0.9, "test_metric": 0.8, "test_loss": 0.4, "ece": None}
    found = result("lora", 0, test_metric=0.7, selected=selected)
    assert value(found, "test_metric", "final") == 0.7
    assert value(found, "test_metric", "selected") == 0.8
    assert value(found, "generalisation_gap", "selected") == pytest.approx(0.1)
    assert value(found, "ece", "selected") is None
    assert value(result("lora", 0), "test_metric", "selected") is None


def test_pairs_are_all_of_them_or_those_with_the_reference() -> None:
    assert pairs(["a", "b", "c"], None) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs(["a", "b", "c"], "b") == [("a", "b"), ("c", "b")]


def test_the_summary_holds_spreads_tests_and_their_correction() -> None:
    results = two_variants(GAINS)
    results += [
        result("third", seed, test_metric=LORA[seed] - 0.1 - gain)
        for seed, gain in enumerate(GAINS)
    ]
    found = summarised(Gathered(results))
    cell = next(c for c in found["cells"] if c["variant"] == "lora")
    spread = cell["final"]["test_metric"]
    assert spread["mean"] == pytest.approx(0.725)
    # Squared deviations: 2 (0.025^2 + 0.005^2 + 0.015^2) over n - 1 = 5.
    assert spread["std"] == pytest.approx((2 * (0.025**2 + 0.005**2 + 0.015**2) / 5) ** 0.5)
    assert spread["n"] == 6
    assert cell["seeds"] == [0, 1, 2, 3, 4, 5]
    assert cell["selected"] is None
    rows = [row for row in found["comparisons"] if row["outcome"] == "test_metric"]
    assert [(row["first"], row["second"]) for row in rows] == [
        ("lora", "other"),
        ("lora", "third"),
        ("other", "third"),
    ]
    # Three p-values of 1/32 each: three times that.
    assert [row["p_holm"] for row in rows] == pytest.approx([3 / 32] * 3)
    alone = summarised(Gathered(results), reference="lora")["comparisons"]
    assert {row["p_holm"] for row in alone if row["outcome"] == "test_metric"} == {2 / 32}
    assert json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "changes, note",
    [
        ({"device": "NVIDIA A100"}, "2 devices (2, 1 runs)"),
        ({"versions": VERSIONS | {"torch": "2.1"}}, "2 versions of packages"),
        ({"task": "cr", "metric_name": "f1"}, "different metrics (accuracy, f1)"),
        ({"seed": 5}, "different seeds (lora 2, other 1 runs)"),
        ({"train_size": 299}, "sst2, 300 training examples: there are only 299."),
    ],
)
def test_what_is_mixed_is_noted(changes: dict[str, Any], note: str) -> None:
    same = [result("lora", 0), result("other", 0)]
    assert summarised(Gathered(same))["notes"] == []
    task, seed = changes.pop("task", "sst2"), changes.pop("seed", 1)
    found = summarised(Gathered([*same, result("lora", seed, task=task, **changes)]))["notes"]
    assert any(note in one for one in found), found


def test_bins_are_pooled_by_their_counts() -> None:
    empty = {"confidence": None, "accuracy": None, "count": 0}
    first = [empty, {"confidence": 0.5, "accuracy": 0.4, "count": 3}]
    second = [empty, {"confidence": 0.6, "accuracy": 0.8, "count": 1}]
    found = pooled([result("a", 0, reliability=first), result("a", 1, reliability=second)])
    assert found is not None
    assert found[0] == (0, 0, 0)
    assert found[1] == (pytest.approx(0.525), pytest.approx(0.5), 4)
    assert pooled([result("a", 0)]) is None


def test_steps_are_counted_over_the_phases() -> None:
    phases = [{"name": "search", "lower_steps": 30}, {"name": "retraining", "lower_steps": 20}]
    lines = [
        evaluation(30, 120, loss=1.0, accuracy=0.5, phase_index=0),
        evaluation(10, 130, loss=1.0, accuracy=0.5, phase_index=1),
    ]
    assert [x for x, _ in whole_steps(lines, result("a", 0, phases=phases))] == [30, 40]


def test_updates_of_the_upper_level_alone_are_counted_where_a_phase_has_no_others() -> None:
    phases = [
        {"name": "training", "lower_steps": 30, "upper_steps": 0},
        {"name": "values", "lower_steps": 0, "upper_steps": 8},
    ]
    lines = [
        evaluation(0, 130 + k, loss=1.0, accuracy=0.5, phase_index=1) | {"round": k} for k in (4, 8)
    ]
    assert [x for x, _ in whole_steps(lines, result("a", 0, phases=phases))] == [34, 38]


def test_variants_look_different_from_each_other() -> None:
    looks = styles([f"v{number}" for number in range(20)])
    assert len(set(looks.values())) == 20


class Page(HTMLParser):
    """The tags of a page, its texts, and what is still open at its end."""

    EMPTY = frozenset(("meta", "br", "wbr", "path", "use", "rect", "image", "line"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, four variants, three seeds; curves, bins, a failure, an unfinished run."""
    out = tmp_path_factory.mktemp("grid")
    gains = {"lora": 0.0, "dora": 0.001, "clear": 0.05, "<b>&": -0.002}
    wobble = (0.0, 0.003, -0.002)
    bins = [{"confidence": 0.9, "accuracy": 0.8, "count": 10}]
    for task in ("sst2", "cr"):
        for variant, gain in gains.items():
            for seed in range(3):
                # Differences between the variants vary over the seeds, by less than 0.01.
                own = wobble[(seed + len(variant)) % 3]
                score = 0.7 + 0.02 * seed + gain + own
                lines = tuple(
                    evaluation(10 * k, 40 * k, loss=1 / k, accuracy=score - 0.1 / k)
                    for k in (1, 2, 3)
                )
                put_run(
                    out,
                    variant,
                    seed,
                    task=task,
                    lines=lines,
                    options={"lora_r": 4 if variant == "dora" else 8},
                    test_metric=score,
                    reliability=bins,
                    per_class={"no": {"f1": 0.5 + seed / 10}, "yes": {"f1": None}},
                    selected={"test_metric": score, "train_metric": 0.9, "test_loss": 0.5},
                )
    failed = put_run(out, "lora", 7, finished=False)
    failure = {"reason": "killed by SIGKILL", "status": -9, "log": ["last <words>"]}
    (failed / "failure.json").write_text(json.dumps(failure))
    put_run(out, "lora", 8, finished=False)
    invocation = {"command": "python -m applications.compare g.yaml", "methods": list(gains)}
    (out / "invocations.jsonl").write_text(json.dumps(invocation | {"reference": None}) + "\n")
    return out


@pytest.fixture(scope="module")
def text(grid: Path) -> str:
    return write_report(grid).read_text(encoding="utf-8")


def test_the_page_is_whole_and_needs_no_network(text: str) -> None:
    page = Page(text)
    assert page.open == []
    asked = [
        value
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "action") and not str(value).startswith("#")
    ]
    assert asked == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"link", "img", "iframe", "object"}
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # its own, without a source
    assert "url(http" not in text
    assert "@import" not in text


def test_every_figure_says_what_it_shows_and_every_table_has_heads(text: str) -> None:
    page = Page(text)
    figures = [attrs for tag, attrs in page.tags if tag == "svg"]
    # The overview, and costs, curves, reliability of two tasks.
    assert len(figures) == 1 + 3 * 2
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in figures)
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables == sum(tag == "caption" for tag, _ in page.tags) > 5
    assert text.count("<figcaption>") == len(figures)


def test_texts_are_escaped(text: str) -> None:
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text
    assert "last &lt;words&gt;" in text


def test_the_page_names_failures_commands_versions_and_differences(text: str) -> None:
    for part in (
        "killed by SIGKILL",
        "not finished",
        "python -m applications.compare g.yaml",
        "torch 2.0",
        "cpu (x86_64, 1 threads)",
        "lora_r",
        "1 runs failed and 1 are not finished",
    ):
        assert part in text


def row_of(text: str, title: str, variant: str) -> str:
    """The row of a variant in the table with that title."""
    table = text[text.index(f"<h3>{title}</h3>") :]
    table = table[: table.index("</table>")]
    (row,) = re.findall(rf'<tr><th scope="row">{variant}</th>.*?</tr>', table, re.DOTALL)
    return str(row)


def test_only_a_variant_with_intervals_without_zero_is_marked(text: str) -> None:
    title = "sst2, 300 training examples, final step"
    assert 'class="better"' in row_of(text, title, "clear")
    for variant in ("lora", "dora"):
        assert "class=" not in row_of(text, title, variant)
    assert "clear is ahead of every other in test accuracy" in text
    headline = "All tasks, final step, against lora"
    for variant, marked in (("clear", True), ("dora", False)):
        # Runs; mean test metric with its difference to lora.
        cells = re.findall(r"<td.*?</td>", row_of(text, headline, variant), re.DOTALL)
        assert ('class="better"' in cells[1]) == marked
        assert "(n=6)" in cells[1]


def test_every_mean_stands_beside_its_number_of_runs(text: str) -> None:
    row = row_of(text, "sst2, 300 training examples, final step", "lora")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert cells[0] == "3"
    # 0.7 + (0, 0.02, 0.04) + wobbles of (0.003, -0.002, 0): mean and standard deviation by hand.
    values = [0.7 + 0.02 * k + (0.003, -0.002, 0.0)[k] for k in range(3)]
    mean = sum(values) / 3
    std = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    assert cells[1] == f"{mean:.3f} \u00b1 {std:.3f}"


def test_classes_are_compared_by_their_f1(text: str) -> None:
    assert "sst2, 300 training examples, F1 of each class" in text
    # 0.5, 0.6 and 0.7 for each variant; where no run has an F1, nothing.
    assert text.count("<td>0.600 \u00b1 0.100</td>") == 2 * 4
    assert '<tr><th scope="row">yes</th><td>\u2013</td>' in text


@pytest.mark.figures
def test_equal_results_give_an_equal_page(grid: Path, text: str, tmp_path: Path) -> None:
    path = write_report(grid, page=tmp_path / "again.html")
    assert path.read_text(encoding="utf-8") == text


def test_variants_come_in_the_order_of_the_grid(grid: Path) -> None:
    assert gathered(grid).variants == ["lora", "dora", "clear", "<b>&"]


def test_a_report_can_be_made_of_the_results_alone(grid: Path, tmp_path: Path) -> None:
    lines = [json.dumps(one) + "\n" for one in gathered(grid).results]
    (tmp_path / "results.jsonl").write_text("".join(lines))
    made = write_report(tmp_path).read_text(encoding="utf-8")
    assert "clear is ahead of every other" in made
    assert "Learning curves" not in made


def test_a_reference_leaves_the_comparisons_with_it(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main([str(grid), "--out", str(page), "--reference", "dora"]) == 0
    rows = json.loads((grid / "summary.json").read_text())["comparisons"]
    assert {row["second"] for row in rows} == {"dora"}
    assert "against dora" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([str(grid), "--reference", "dorra"]) == 2
    assert "did you mean dora?" in capsys.readouterr().err


def test_a_folder_without_results_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no finished runs" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_temperature_scaling_is_compared_and_shown_where_runs_have_it(tmp_path: Path) -> None:
    for seed, gain in enumerate(GAINS):
        for variant, less in (("lora", 0.0), ("other", gain)):
            scaled = {
                "temperature": 1.5,
                "calibrated_loss": 0.6 - less,
                "calibrated_ece": 0.05,
                "calibrated_brier": 0.2,
            }
            put_run(tmp_path, variant, seed, **scaled)
    write_report(tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())
    (row,) = [
        row
        for row in found["comparisons"]
        if (row["outcome"], row["step"]) == ("calibrated_loss", "final")
    ]
    first_less = -sum(GAINS) / 6 if row["first"] == "other" else sum(GAINS) / 6
    assert row["difference"] == pytest.approx(first_less)
    assert row["better"] == "other"  # less is better
    page = (tmp_path / "report.html").read_text()
    assert "Test loss after temperature scaling, final step" in page
    assert "ECE with it" in page
