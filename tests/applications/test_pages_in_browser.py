"""The pages of runs, comparisons and weights, opened in a browser: console, overflow, colours,
sorting, values under the pointer.
"""

from pathlib import Path
from typing import Any

import pytest

from applications.comparison.page import write_report
from applications.families.temperature import CALIBRATED
from applications.weighting.mixture import Weighed
from applications.weighting.pull import Sign
from applications.weighting.report import write_page
from tests.applications import browser
from tests.applications.synthetic_grids import evaluation, put_run
from tests.applications.tiny_runs import Run, run

pytestmark = [
    pytest.mark.figures,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium on this machine"),
]
LONG = "a_variant_with_a_rather_long_name_and_a_number_like_0.0001"
MEASURE = """(view, page) => {
  const root = page.documentElement, style = view.getComputedStyle(page.body);
  const table = page.querySelector("table.sorts"), head = table.tHead.rows[0].cells[1];
  const cells = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
  const before = cells(), button = head.querySelector("button");
  button.click();
  const up = cells(), sorted = head.getAttribute("aria-sort");
  button.click();
  const point = page.querySelector("use:has(title)");
  point?.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  const boxes = [...page.querySelectorAll(".wide")].filter((box) => !box.closest("details"));
  return {
    over: root.scrollWidth - root.clientWidth, ink: style.color, paper: style.backgroundColor,
    before, up, down: cells(), sorted, told: page.querySelector("#told").textContent,
    cut: boxes.filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.ariaLabel),
    colours: [0, 1, 2, 3, 4, 5, 7].map((n) => style.getPropertyValue(`--c${n}`)),
  };
}"""


def comparison(out: Path) -> Path:
    """The page of a grid with all outcomes, classes, curves and a long name."""
    for place, variant in enumerate(("lora", LONG, "other")):
        for seed in range(3):
            score = 0.7 + 0.02 * place + 0.01 * (seed * (place + 1) % 3)
            put_run(
                out,
                variant,
                seed,
                lines=(evaluation(10, 40, loss=1.0, accuracy=score),),
                test_metric=score,
                test_loss=1 - score,
                ece=score / 9,
                brier=score / 7,
                **{name: score / 8 for name in CALIBRATED if name != "temperature"},
                per_class={"yes": {"f1": score}},
                reliability=[{"confidence": 0.9, "accuracy": 0.8, "count": 10}],
            )
    return write_report(out)


def weights(folder: Path) -> Path:
    """The page of weighted sources."""
    sources = [
        Weighed(name, "", 100, weight, weight - 0.1, weight + 0.1)
        for name, weight in (("web", 0.4), ("old " * 30, 1.2), ("new", 1.4))
    ]
    write_page(
        folder,
        title="Weights",
        lead="Three sources.",
        sources=sources,
        signs={s.name: Sign(s.weight - 1, s.weight - 1.2, s.weight - 0.8, 0.5) for s in sources},
        controls=[],
        explained={},
        steps=([0.9, 0.8], 1),
        options={"form": "softmax"},
        notes=[],
    )
    return folder / "weights.html"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def test_pages_hold_on_a_phone_and_a_screen_in_light_and_dark(tiny: Run, places: Path) -> None:
    selecting = ("--eval_steps", "2", "--metric_for_best_model", "loss", "--max_steps", "4")
    _, folder = run(tiny("bilora", *selecting, "--hypergradient", "cg"))
    (places / "grid").mkdir()
    (places / "weights").mkdir()
    pages = {
        "run": folder / "report.html",
        "comparison": comparison(places / "grid"),
        "weights": weights(places / "weights"),
    }
    seen: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for scheme in browser.SCHEMES:
        own = places / scheme
        own.mkdir()
        found, said = browser.opened(pages, own, scheme, MEASURE)
        assert said == []
        for one in found:
            seen.setdefault((one["page"], one["width"]), {})[scheme] = one
    assert len(seen) == 6
    for (page, width), schemes in seen.items():
        light, dark = schemes["light"], schemes["dark"]
        for one in (light, dark):
            assert one["over"] <= 0, (page, width)
            assert (one["up"], one["sorted"]) != (one["before"], None)
            assert sorted(one["up"]) == sorted(one["before"]) == sorted(one["down"])
            assert one["down"] != one["up"] or len(set(one["up"])) == 1
            assert one["told"]
            if width == 1280:
                assert one["cut"] == [], page
        assert contrast(light["ink"], light["paper"]) > 7
        assert contrast(dark["ink"], dark["paper"]) > 7
        assert luminance(light["paper"]) > 0.9 > 0.1 > luminance(dark["paper"])
        # Okabe and Ito's yellows and light blues are pale on white; dark, all stand out.
        assert min(contrast(c, dark["paper"]) for c in dark["colours"]) > 4
        assert min(contrast(c, light["paper"]) for c in light["colours"]) > 2


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(...)`` or ``#...``, as in WCAG 2."""
    if colour.startswith("#"):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    else:
        parts = [int(v) / 255 for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Their contrast, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
