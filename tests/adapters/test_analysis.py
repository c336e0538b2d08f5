"""Changes of magnitude and direction, spectra and figures against closed forms."""

import json
import math
import sys

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn

from adapters import LoraDropoutConfig, masking, singular_values
from adapters.results.analysis import (
    Change,
    Slope,
    analyse,
    change,
    changes,
    slope,
)
from adapters.results.figures import plot_changes, plot_spectra
from tests.adapters.models import BASES, METHODS, adapted, base_model, inputs, move, output


def test_a_scaled_weight_changes_in_magnitude_alone() -> None:
    W = torch.randn(4, 6)
    found = change(W, 1.5 * W)
    assert found.magnitude == pytest.approx(0.5 * W.double().norm(dim=1).mean().item())
    assert found.direction < 1e-14


def test_a_rotated_weight_changes_in_direction_alone() -> None:
    angle = 0.3
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    W = torch.randn(5, 2, dtype=torch.float64)
    found = change(W, W @ turn.double().T)
    assert found.magnitude < 1e-7
    assert found.direction == pytest.approx(1 - math.cos(angle), rel=1e-6)


def test_a_small_change_of_direction_keeps_its_digits() -> None:
    # 1 - cos(1e-7) = 5e-15, which 1 - dot(u, v) would lose.
    W = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    V = torch.tensor([[math.cos(1e-7), math.sin(1e-7)]], dtype=torch.float64)
    assert change(W, V).direction == pytest.approx(5e-15, rel=1e-6)


@pytest.mark.parametrize("axis", ["out", "in"])
def test_the_change_is_the_papers_formula(axis: str) -> None:
    W, V = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    dim = 1 if axis == "out" else 0
    found = change(W, V, axis=axis)
    cosine = torch.cosine_similarity(W, V, dim=dim)
    assert found.magnitude == pytest.approx((V.norm(dim=dim) - W.norm(dim=dim)).abs().mean().item())
    assert found.direction == pytest.approx((1 - cosine).mean().item())


def test_a_zero_row_has_no_direction() -> None:
    W = torch.eye(3)
    W[1] = 0
    V = torch.eye(3)
    found = change(W, V)
    assert found.direction == 0
    assert found.magnitude == pytest.approx(1 / 3)
    assert change(torch.zeros(2, 2), torch.zeros(2, 2)).direction == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", list(BASES))
def test_the_changes_are_those_of_the_merged_weights(base: str, method: str) -> None:
    model = adapted(base, method, moved=0.3, dtype=torch.float64)
    found = {point.layer: point for point in changes(model, checkpoint="end")}
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "base_layer")}
    before = {name: m.base_layer.weight.detach().clone() for name, m in layers.items()}
    model.merge_adapter()
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        after = layer.base_layer.weight.detach()
        pair = (before[name], after) if base != "gpt2" else (before[name].T, after.T)
        expected = change(*pair, layer=name, checkpoint="end")
        assert found[name].magnitude == pytest.approx(expected.magnitude)
        assert found[name].direction == pytest.approx(expected.direction)


@pytest.mark.parametrize("stock", ["lora", "dora", "adalora"])
def test_stock_adapters_are_analysed_too(stock: str) -> None:
    config: LoraConfig
    if stock == "adalora":
        config = AdaLoraConfig(init_r=3, target_r=3, total_step=10, target_modules=["first"])
    else:
        config = LoraConfig(r=3, target_modules=["first"], use_dora=stock == "dora")
    model = move(get_peft_model(base_model("mlp", torch.float64), config), 0.3)
    (found,) = analyse(model).values()
    layer = model.base_model.model.first
    before = layer.base_layer.weight.detach().clone()
    model.merge_adapter()
    values = torch.linalg.svdvals(layer.base_layer.weight.detach() - before)
    kept = 5 if stock == "dora" else 3
    assert found.singular_values == pytest.approx(values[:kept].tolist(), rel=1e-6)
    assert found.learned is None
    assert found.row_orthogonality is not None


@pytest.mark.parametrize("method", METHODS)
def test_nothing_has_changed_at_the_start(method: str) -> None:
    for one in analyse(adapted("mlp", method)).values():
        assert one.change.magnitude == pytest.approx(0, abs=1e-6)
        assert one.change.direction < 1e-12
        if method != "bidora":  # its norms are rounded to float32
            assert one.singular_values == []
            assert (one.effective_rank, one.stable_rank) == (0, 0)


def test_an_analysis_leaves_the_model_as_it_was() -> None:
    model = adapted("bert", "real", moved=0.3).train()
    before = output(model, inputs("bert"))
    state = torch.get_rng_state()
    analyse(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(output(model, inputs("bert")), before)
    assert all(module.training for module in model.modules())


def test_masks_are_off_in_an_analysis() -> None:
    config = LoraDropoutConfig(r=3, target_modules=["first"], mask_rate=0.5)
    model = move(get_peft_model(base_model("mlp"), config), 0.3).eval()
    expected = changes(model)
    assert changes(model.train()) == expected
    with masking(model, on=True):
        assert changes(model) == expected


def test_ranks_and_orthogonality_have_their_closed_forms() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4, bias=False)).double()
    model = get_peft_model(net, LoraConfig(r=3, lora_alpha=3, target_modules=["0"]))
    values = [3.0, 2.0, 1.0]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.copy_(torch.eye(3, 4))
            elif "lora_B" in name:
                p.copy_(torch.eye(4, 3) * torch.tensor(values))
    (found,) = analyse(model).values()
    assert found.singular_values == pytest.approx(values)
    shares = [v / 6 for v in values]
    entropy = -sum(s * math.log(s) for s in shares)
    assert found.effective_rank == pytest.approx(math.exp(entropy))
    assert found.stable_rank == pytest.approx(14 / 9)
    assert found.row_orthogonality == 0
    # B^T B = diag(9, 4, 1).
    assert found.column_orthogonality == pytest.approx(math.sqrt(8**2 + 3**2))
    assert (found.row_coherence, found.column_coherence) == (0, 0)


def test_coherence_is_the_largest_cosine() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    model = get_peft_model(net, LoraConfig(r=3, target_modules=["0"]))
    rows = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    with torch.no_grad():
        dict(model.named_parameters())["base_model.model.0.lora_A.default.weight"].copy_(rows)
    (found,) = analyse(model).values()
    assert found.row_coherence == pytest.approx(0.6)
    assert found.column_coherence is None


def test_learned_values_are_those_of_the_adapter() -> None:
    model = adapted("mlp", "softmax", moved=0.3)
    learned = {name: one.learned for name, one in analyse(model).items()}
    assert learned == {name: values.tolist() for name, values in singular_values(model).items()}


def test_an_analysis_is_data() -> None:
    found = analyse(adapted("mlp", "softmax", moved=0.3))
    plain = {name: one.to_dict() for name, one in found.items()}
    again = json.loads(json.dumps(plain))
    assert again == plain
    assert set(next(iter(plain.values()))) >= {"change", "singular_values", "effective_rank"}


# Slope


def points(noise: float = 0.0, layers: int = 6, checkpoints: int = 4) -> list[Change]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for layer in range(layers):
        for checkpoint in range(checkpoints):
            x = torch.rand((), generator=generator).item()
            y = 3 - 2 * x + noise * torch.randn((), generator=generator).item()
            found.append(Change(str(layer), str(checkpoint), y, x))
    return found


@pytest.mark.parametrize("by", ["layer", "point"])
def test_points_on_a_line_have_its_slope_without_spread(by: str) -> None:
    found = slope(points(), by=by, num_samples=100)
    assert (found.slope, found.intercept) == pytest.approx((-2, 3))
    assert (found.low, found.high) == pytest.approx((-2, -2))
    assert found.std < 1e-12
    assert found.correlation == pytest.approx(-1)
    assert (found.num_points, found.num_groups) == (24, 6 if by == "layer" else 24)


def test_the_slope_is_the_least_squares_one() -> None:
    noisy = points(0.3)
    x = torch.tensor([[p.direction, 1.0] for p in noisy], dtype=torch.float64)
    y = torch.tensor([p.magnitude for p in noisy], dtype=torch.float64)
    expected = torch.linalg.lstsq(x, y[:, None]).solution.flatten().tolist()
    found = slope(noisy, num_samples=100)
    assert [found.slope, found.intercept] == pytest.approx(expected)
    correlation = torch.corrcoef(torch.stack([x[:, 0], y]))[0, 1].item()
    assert found.correlation == pytest.approx(correlation)
    assert found.low < found.slope < found.high


def test_the_spread_of_single_points_is_that_of_regression_theory() -> None:
    noisy = points(0.3, layers=200, checkpoints=1)
    x = torch.tensor([p.direction for p in noisy], dtype=torch.float64)
    y = torch.tensor([p.magnitude for p in noisy], dtype=torch.float64)
    found = slope(noisy, by="point", num_samples=1000)
    residual = y - found.intercept - found.slope * x
    theory = (residual.square().sum() / 198 / (x - x.mean()).square().sum()).sqrt().item()
    # A bootstrap of 1,000 samples has its deviation to about 1/sqrt(2,000).
    assert found.std == pytest.approx(theory, rel=0.15)
    assert found.high - found.low == pytest.approx(2 * 1.96 * theory, rel=0.15)


def test_one_layer_apart_widens_the_interval_of_layers() -> None:
    # All the slope comes from one layer: resampling layers sees it, resampling points less.
    flat = [Change(str(i), str(j), 1.0, 0.01 * j) for i in range(5) for j in range(6)]
    steep = [Change("steep", str(j), 1.0 - j, 0.1 * j) for j in range(6)]
    apart = slope([*flat, *steep], by="layer", num_samples=300)
    together = slope([*flat, *steep], by="point", num_samples=300)
    assert apart.high - apart.low > together.high - together.low


def test_a_seed_repeats_the_interval() -> None:
    noisy = points(0.3)
    found = slope(noisy, num_samples=50)
    assert slope(noisy, num_samples=50) == found
    assert slope(noisy, num_samples=50, seed=1).std != found.std


def test_misuse_of_the_analysis_names_the_argument() -> None:
    same = [Change(str(i), "", float(i), 0.5) for i in range(5)]
    for few in (same, points()[:2], []):
        with pytest.raises(ValueError, match="points must be at least three"):
            slope(few) if few else slope([Change("", "", 0.0, 0.0)])
    with pytest.raises(ValueError, match="by must be"):
        slope(points(), by="model")
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        slope(points(), level=95)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        slope(points(), num_samples=0)
    with pytest.raises(ValueError, match="one shape"):
        change(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="axis must be one of"):
        change(torch.zeros(2, 3), torch.zeros(2, 3), axis="rows")
    with pytest.raises(ValueError, match="no adapted linear layer"):
        analyse(base_model("mlp"))
    model = adapted("mlp", "real", moved=0.3)
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        changes(model)


# Figures


def test_a_figure_of_changes_shows_every_point_and_the_line() -> None:
    some = points(0.3)
    figure = plot_changes(some, line=slope(some, num_samples=50))
    (axes,) = figure.axes
    drawn = [tuple(xy) for one in axes.collections for xy in one.get_offsets().tolist()]
    assert {(p.direction, p.magnitude) for p in some} <= set(drawn)
    labels = axes.get_legend_handles_labels()[1]
    assert [label for label in labels if label.startswith("slope -")]
    assert {"0", "1", "2", "3"} <= set(labels)


def test_a_line_goes_through_the_mean_of_the_points() -> None:
    some = points(0.3)
    found = slope(some, num_samples=50)
    (line,) = plot_changes(some, line=found).axes[0].lines
    x, y = (torch.as_tensor(v, dtype=torch.float64) for v in line.get_data())
    torch.testing.assert_close(y, found.intercept + found.slope * x)


def test_a_figure_of_spectra_shows_the_values() -> None:
    found = analyse(adapted("mlp", "softmax", moved=0.3))
    figure = plot_spectra(found)
    spectrum, learned = figure.axes
    for one, line in zip(found.values(), spectrum.lines, strict=True):
        assert list(line.get_ydata()) == one.singular_values
    for one, line in zip(found.values(), learned.lines, strict=True):
        assert list(line.get_ydata()) == sorted(one.learned or [], reverse=True)
    labels = spectrum.get_legend_handles_labels()[1]
    assert [label.split()[0] for label in labels] == ["first", "second"]
    assert len(plot_spectra(analyse(adapted("mlp", "bidora", moved=0.3))).axes) == 1


def test_a_figure_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="points must hold"):
        plot_changes([])
    with pytest.raises(ValueError, match="found must hold"):
        plot_spectra({})


def test_without_matplotlib_figures_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_changes(points())


def test_a_slope_is_data() -> None:
    found = slope(points(), num_samples=50)
    assert isinstance(found, Slope)
    assert json.loads(json.dumps(vars(found)))["num_points"] == 24
