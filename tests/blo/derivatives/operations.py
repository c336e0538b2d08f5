"""Differentiable operations of torch, each as a function of tensors with inputs away from kinks."""

import runpy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

Case = tuple[Callable[..., Tensor], tuple[Tensor, ...]]

# Modules below start at random values, the same in every process: a rare start is ill conditioned.
_BEFORE = torch.get_rng_state()
torch.manual_seed(0)


def values(*shape: int, low: float = -1.9, high: float = 2.1, seed: int = 0) -> Tensor:
    """Distinct numbers in random order, evenly spread: no two are close, none is close to zero."""
    generator = torch.Generator("cpu").manual_seed(seed + 17 * sum(shape) + len(shape))
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=generator, device="cpu")
    spread = torch.linspace(low, high, count + 2, dtype=torch.float64, device="cpu")[1:-1]
    return spread[order].reshape(shape).to(torch.get_default_device())


def positive(*shape: int, seed: int = 0) -> Tensor:
    return values(*shape, low=0.3, high=1.9, seed=seed)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return values(*shape, low=-0.85, high=0.9, seed=seed)


def square(n: int = 3, seed: int = 0) -> Tensor:
    """A matrix that is well conditioned and not symmetric."""
    return values(n, n, seed=seed) + 3 * torch.eye(n, dtype=torch.float64)


def spd(m: Tensor) -> Tensor:
    return m @ m.mT + 2 * torch.eye(m.shape[-1], dtype=m.dtype)


def symmetric(m: Tensor) -> Tensor:
    return m + m.mT


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


X, Y = values(3, 4), values(3, 4, seed=1)
P, Q = positive(3, 4), positive(3, 4, seed=1)
U = unit(3, 4)
LABELS = ints(0, 2, 1)
ROWS = ints(2, 0, 2)
WHERE = ints(0, 1, 1, 0, 2, 2, 1, 0, 2, 0, 1, 2).reshape(3, 4)
MASK = WHERE > 0
IMAGE = values(2, 4, 5, 5)
SEQUENCE = values(2, 4, 6)


def _named(module: Any, names: str, *inputs: Tensor) -> dict[str, Case]:
    return {name: (getattr(module, name), inputs) for name in names.split()}


def _module(module: nn.Module, *inputs: Tensor) -> Case:
    """A module as a function of its inputs and of its parameters."""
    module = module.double()
    names = [name for name, _ in module.named_parameters()]
    for i, (_, p) in enumerate(module.named_parameters()):
        p.data.copy_(values(*p.shape, seed=i) * 0.5)
    weights = tuple(p.detach().clone() for p in module.parameters())
    module.requires_grad_(False)
    buffers = {name: b.clone() for name, b in module.named_buffers()}

    def function(*tensors: Tensor) -> Tensor:
        given, own = tensors[: len(inputs)], tensors[len(inputs) :]
        state = {**dict(zip(names, own, strict=True)), **{k: b.clone() for k, b in buffers.items()}}
        out = torch.func.functional_call(module, state, given)
        return out[0] if isinstance(out, tuple) else out

    return function, (*inputs, *weights)


def _attention(*inputs: Tensor, **options: Any) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(*inputs, **options)


class _Layer(nn.Module):
    """A transformer layer, without fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            out: Tensor = self.layer(x)
            return out


def _kept(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with the same random numbers at each call."""

    def again(*tensors: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*tensors)

    return again


ELEMENTWISE: dict[str, Case] = {
    **_named(
        torch,
        "abs angle atan asinh cos cosh deg2rad erf erfc exp exp2 expm1 neg rad2deg relu selu "
        "sigmoid sin sinc sinh square tanh nan_to_num frac positive",
        X,
    ),
    **_named(torch, "digamma lgamma log log10 log1p log2 reciprocal rsqrt sqrt i0", P),
    **_named(torch, "acos asin atanh erfinv tan", U),
    "acosh": (torch.acosh, (P + 1,)),
    "logit": (torch.logit, (positive(3, 4) / 2,)),
    "polygamma": (lambda x: torch.polygamma(1, x), (P,)),
    "mvlgamma": (lambda x: torch.mvlgamma(x, 2), (P + 1,)),
    "special.i0e": (torch.special.i0e, (X,)),
    "special.i1": (torch.special.i1, (X,)),
    "special.i1e": (torch.special.i1e, (X,)),
    "special.entr": (torch.special.entr, (P,)),
    "special.erfcx": (torch.special.erfcx, (X,)),
    "special.ndtr": (torch.special.ndtr, (X,)),
    "special.ndtri": (torch.special.ndtri, (P / 2,)),
    "special.log_ndtr": (torch.special.log_ndtr, (X,)),
    "special.xlog1py": (torch.special.xlog1py, (X, P)),
    "xlogy": (torch.xlogy, (X, P)),
    "add": (torch.add, (X, Y)),
    "sub": (torch.sub, (X, Y)),
    "mul": (torch.mul, (X, Y)),
    "div": (torch.div, (X, P)),
    "pow": (torch.pow, (P, Y)),
    "pow at exponent zero": (torch.pow, (P, Y * (WHERE > 1))),
    "operator ** at exponent zero": (lambda x, y: x**y, (P, Y * (WHERE > 1))),
    "float_power at exponent zero": (torch.float_power, (P, Y * (WHERE > 1))),
    "method pow at exponent zero": (lambda x, y: x.pow(y), (P, Y * (WHERE > 1))),
    "pow scalar": (lambda x: x**3.5, (P,)),
    "pow of scalar": (lambda x: 2.0**x, (X,)),
    "float_power": (torch.float_power, (P, Y)),
    "fmod": (torch.fmod, (X, 3 + P)),
    "remainder": (torch.remainder, (X, 3 + P)),
    "atan2": (torch.atan2, (X, P)),
    "hypot": (torch.hypot, (X, Y)),
    "logaddexp": (torch.logaddexp, (X, Y)),
    "logaddexp2": (torch.logaddexp2, (X, Y)),
    "maximum": (torch.maximum, (X, Y + 0.013)),
    "minimum": (torch.minimum, (X, Y + 0.013)),
    "fmax": (torch.fmax, (X, Y + 0.013)),
    "copysign": (torch.copysign, (X, Y)),
    "lerp": (torch.lerp, (X, Y, P)),
    "addcmul": (torch.addcmul, (X, Y, P)),
    "addcdiv": (torch.addcdiv, (X, Y, P)),
    "clamp": (lambda x: x.clamp(-1.01, 1.03), (X,)),
    "clamp by tensors": (torch.clamp, (X, Y - 2.017, Y + 1.013)),
    "where": (lambda x, y: torch.where(MASK, x, y), (X, Y)),
    "masked_fill": (lambda x: x.masked_fill(MASK, 0.5), (X,)),
    "complex abs": (lambda x, y: torch.complex(x, y).abs(), (X, Y)),
    "complex angle": (lambda x, y: torch.complex(x, y).angle(), (X, Y)),
    "polar": (torch.polar, (P, Y)),
}

ACTIVATIONS: dict[str, Case] = {
    **_named(
        F,
        "celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid "
        "mish relu6 silu softplus softshrink softsign tanhshrink",
        X,
    ),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "threshold": (lambda x: F.threshold(x, 0.11, 0.5), (X,)),
    "prelu": (F.prelu, (IMAGE, values(4))),
    "rrelu in evaluation": (lambda x: F.rrelu(x, training=False), (X,)),
    "rrelu": (_kept(lambda x: F.rrelu(x, training=True)), (X,)),
    "dropout": (_kept(lambda x: F.dropout(x, 0.3)), (X,)),
    "alpha_dropout": (_kept(lambda x: F.alpha_dropout(x, 0.3, training=True)), (X,)),
    "dropout2d": (_kept(lambda x: F.dropout2d(x, 0.3)), (IMAGE,)),
    "gumbel_softmax": (_kept(F.gumbel_softmax), (X,)),
    "softmax": (lambda x: x.softmax(1), (X,)),
    "softmin": (lambda x: F.softmin(x, 1), (X,)),
    "log_softmax": (lambda x: x.log_softmax(1), (X,)),
    "masked softmax": (lambda x: x.masked_fill(WHERE > 1, -torch.inf).softmax(1), (X,)),
}

REDUCTIONS: dict[str, Case] = {
    "sum": (lambda x: x.sum(1), (X,)),
    "mean": (lambda x: x.mean(1), (X,)),
    "nanmean": (lambda x: x.nanmean(1), (X,)),
    "nansum": (lambda x: x.nansum(1), (X,)),
    "prod": (lambda x: x.prod(), (X,)),
    "prod dim": (lambda x: x.prod(1), (X,)),
    "prod with zero": (lambda x: (x * (WHERE > 0)).prod(1), (X,)),
    "var": (lambda x: x.var(1), (X,)),
    "std": (lambda x: x.std(1), (X,)),
    "var_mean": (lambda x: torch.cat(torch.var_mean(x, 1)), (X,)),
    "std_mean": (lambda x: torch.cat(torch.std_mean(x, 1)), (X,)),
    "norm": (lambda x: x.norm(), (X,)),
    "norm dim": (lambda x: x.norm(dim=1), (X,)),
    "norm 1": (lambda x: x.norm(1, dim=1), (X,)),
    "norm 3": (lambda x: x.norm(3, dim=1), (X,)),
    "norm 1.5": (lambda x: x.norm(1.5, dim=1), (X,)),
    "norm inf": (lambda x: x.norm(torch.inf, dim=1), (X,)),
    "linalg.vector_norm": (lambda x: torch.linalg.vector_norm(x, 2.5, dim=1), (X,)),
    "linalg.matrix_norm": (lambda x: torch.linalg.matrix_norm(x), (X,)),
    "linalg.matrix_norm nuc": (lambda x: torch.linalg.matrix_norm(x, "nuc"), (X,)),
    "linalg.matrix_norm 2": (lambda x: torch.linalg.matrix_norm(x, 2), (X,)),
    "logsumexp": (lambda x: x.logsumexp(1), (X,)),
    "max": (lambda x: x.max(), (X,)),
    "max dim": (lambda x: x.max(1).values, (X,)),
    "min dim": (lambda x: x.min(1).values, (X,)),
    "amax": (lambda x: x.amax(1), (X,)),
    "amin": (lambda x: x.amin((0, 1)), (X,)),
    "aminmax": (lambda x: torch.cat(torch.aminmax(x, dim=1)), (X,)),
    "median": (lambda x: x.median(1).values, (X,)),
    "nanmedian": (lambda x: x.nanmedian(), (X,)),
    "mode": (lambda x: x.mode(1).values, (X,)),
    "quantile": (lambda x: x.quantile(0.3, 1), (X,)),
    "kthvalue": (lambda x: x.kthvalue(2, 1).values, (X,)),
    "sort": (lambda x: x.sort(1).values, (X,)),
    "msort": (torch.msort, (X,)),
    "topk": (lambda x: x.topk(2, 1).values, (X,)),
    "cumsum": (lambda x: x.cumsum(1), (X,)),
    "cumprod": (lambda x: x.cumprod(1), (X,)),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), (X,)),
    "method logcumsumexp": (lambda x: x.logcumsumexp(0), (X,)),
    "cummax": (lambda x: x.cummax(1).values, (X,)),
    "cummin": (lambda x: x.cummin(1).values, (X,)),
    "diff": (lambda x: x.diff(dim=1), (X,)),
    "gradient": (lambda x: torch.gradient(x, dim=1)[0], (X,)),
    "trapezoid": (torch.trapezoid, (X,)),
    "renorm": (lambda x: x.renorm(2, 0, 1.0), (X,)),
    "cov": (torch.cov, (X,)),
    "corrcoef": (torch.corrcoef, (X,)),
}

SHAPES: dict[str, Case] = {
    "cat": (lambda x, y: torch.cat([x, y]), (X, Y)),
    "stack": (lambda x, y: torch.stack([x, y]), (X, Y)),
    "view and transpose": (lambda x: x.t().reshape(2, 6), (X,)),
    "permute": (lambda x: x.permute(2, 0, 1), (SEQUENCE,)),
    "expand": (lambda x: x[:, None].expand(3, 2, 4) * 1.5, (X,)),
    "repeat": (lambda x: x.repeat(2, 2), (X,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(ints(1, 2, 1), 0), (X,)),
    "tile": (lambda x: x.tile(2), (X,)),
    "flip": (lambda x: x.flip(1), (X,)),
    "roll": (lambda x: x.roll(1, 1), (X,)),
    "rot90": (torch.rot90, (X,)),
    "unfold": (lambda x: x.unfold(1, 2, 1), (X,)),
    "as_strided": (lambda x: x.as_strided((2, 3), (2, 1)), (X,)),
    "narrow and select": (lambda x: x.narrow(1, 1, 2).select(0, 1), (X,)),
    "tril": (torch.tril, (X,)),
    "diagonal": (torch.diagonal, (X,)),
    "diag_embed": (torch.diag_embed, (X,)),
    "index": (lambda x: x[ROWS], (X,)),
    "index_select": (lambda x: x.index_select(0, ROWS), (X,)),
    "gather": (lambda x: x.gather(0, WHERE), (X,)),
    "take": (lambda x: x.take(WHERE), (X,)),
    "take_along_dim": (lambda x: x.take_along_dim(WHERE, 0), (X,)),
    "masked_select": (lambda x: x.masked_select(MASK), (X,)),
    "scatter": (lambda x, y: x.scatter(0, ints(2, 0, 1, 2)[None], y[:1]), (X, Y)),
    "scatter_add": (lambda x, y: x.scatter_add(0, WHERE, y), (X, Y)),
    **{
        f"scatter_reduce {kind}": (
            lambda x, y, kind=kind: x.scatter_reduce(0, WHERE, y, kind),
            (X, Y + 0.013),
        )
        for kind in ("sum", "prod", "mean", "amax", "amin")
    },
    "index_add": (lambda x, y: x.index_add(0, ROWS, y), (X, Y)),
    "index_copy": (lambda x, y: x.index_copy(0, ints(2, 0), y), (X, Y[:2])),
    "index_fill": (lambda x: x.index_fill(0, ROWS, 0.5), (X,)),
    "index_put": (lambda x, y: x.index_put((ROWS,), y, accumulate=True), (X, Y)),
    "index_put without accumulate": (lambda x, y: x.index_put((ints(2, 0),), y), (X, Y[:2])),
    "block_diag": (torch.block_diag, (X, Y)),
    "cartesian_prod": (torch.cartesian_prod, (values(2), values(3))),
    "combinations": (torch.combinations, (values(4),)),
    "segment_reduce": (lambda x: torch.segment_reduce(x, "mean", lengths=ints(1, 2)), (X,)),
    "masked_scatter": (lambda x, y: x.masked_scatter(MASK, y), (X, Y)),
    "setitem": (lambda x, y: _assigned(x, y), (X, Y)),
    "pad": (lambda x: F.pad(x, (1, 2)), (X,)),
    "pad reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), (IMAGE,)),
    "pad replicate": (lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), (IMAGE,)),
    "pad circular": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), (IMAGE,)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (IMAGE,)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 5), (IMAGE,)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), (IMAGE,)),
    "F.unfold": (lambda x: F.unfold(x, 2), (IMAGE,)),
    "F.fold": (lambda x: F.fold(x, (3, 3), 2), (values(1, 8, 4),)),
    "to float64": (lambda x: x.to(torch.float64) * x, (X,)),
    "view_as_complex": (lambda x: torch.view_as_complex(x.reshape(6, 2)).square(), (X,)),
}


def _assigned(x: Tensor, y: Tensor) -> Tensor:
    out = x * y
    out[1] = y[0].sin()
    out[:, 2] *= 2
    return out


LINEAR_ALGEBRA: dict[str, Case] = {
    "matmul": (torch.matmul, (X, Y.t())),
    "mm": (torch.mm, (X, Y.t())),
    "mv": (torch.mv, (X, values(4))),
    "dot": (torch.dot, (values(4), values(4, seed=1))),
    "bmm": (torch.bmm, (values(2, 3, 4), values(2, 4, 3))),
    "addmm": (torch.addmm, (values(3, 3), X, Y.t())),
    "addmv": (torch.addmv, (values(3), X, values(4))),
    "addr": (torch.addr, (X, values(3), values(4))),
    "baddbmm": (torch.baddbmm, (values(2, 3, 3), values(2, 3, 4), values(2, 4, 3))),
    "outer": (torch.outer, (values(3), values(4))),
    "kron": (torch.kron, (values(2, 2), X)),
    "cross": (lambda x, y: torch.linalg.cross(x, y, dim=0), (X, Y)),
    "einsum": (
        lambda x, y, z: torch.einsum("ij,jk,ik->i", x, y, z),
        (X, values(4, 3), values(3, 3)),
    ),
    "tensordot": (lambda x, y: torch.tensordot(x, y, ([0, 1], [0, 1])), (X, Y)),
    "linalg.multi_dot": (lambda *m: torch.linalg.multi_dot(m), (X, values(4, 3), values(3, 2))),
    "matrix_power": (lambda m: torch.linalg.matrix_power(m, 3), (square(),)),
    "matrix_exp": (torch.linalg.matrix_exp, (values(3, 3) / 2,)),
    "bilinear": (F.bilinear, (X, Y, values(2, 4, 4))),
    "linear": (F.linear, (X, values(2, 4), values(2))),
    "inv": (torch.linalg.inv, (square(),)),
    "pinv": (torch.linalg.pinv, (values(4, 3),)),
    "det": (torch.linalg.det, (square(),)),
    "slogdet": (lambda m: torch.linalg.slogdet(m)[1], (square(),)),
    "logdet": (lambda m: torch.logdet(spd(m)), (square(),)),
    "solve": (torch.linalg.solve, (square(), values(3, 2))),
    "solve_triangular": (
        lambda m, b: torch.linalg.solve_triangular(m.triu(), b, upper=True),
        (square(), values(3, 2)),
    ),
    "cholesky": (lambda m: torch.linalg.cholesky(spd(m)), (square(),)),
    "cholesky_solve": (
        lambda m, b: torch.cholesky_solve(b, torch.linalg.cholesky(spd(m))),
        (square(), values(3, 2)),
    ),
    "cholesky_inverse": (
        lambda m: torch.cholesky_inverse(torch.linalg.cholesky(spd(m))),
        (square(),),
    ),
    "lu": (lambda m: torch.cat(torch.linalg.lu(m)[1:]), (square(),)),
    "lu_solve": (
        lambda m, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(m), b),
        (square(), values(3, 2)),
    ),
    "qr": (lambda m: torch.cat(torch.linalg.qr(m)), (square(),)),
    "svdvals": (torch.linalg.svdvals, (values(4, 3),)),
    "svd": (lambda m: _projectors(*torch.linalg.svd(m, full_matrices=False)), (values(4, 3),)),
    "eigvalsh": (lambda m: torch.linalg.eigvalsh(symmetric(m)), (square(),)),
    "eigh": (lambda m: torch.linalg.eigh(symmetric(m))[1].square(), (square(),)),
    "eigvals": (lambda m: torch.linalg.eigvals(m).abs().square().sum(), (square(),)),
    "eig": (lambda m: torch.linalg.eig(m)[1].abs(), (square(),)),
    "lstsq": (lambda a, b: torch.linalg.lstsq(a, b).solution, (values(4, 3), values(4, 2))),
    "householder_product": (
        torch.linalg.householder_product,
        (values(4, 3), values(3)),
    ),
    "linalg.norm -2": (lambda m: torch.linalg.norm(m, -2), (square(),)),
    "linalg.cond": (torch.linalg.cond, (square(),)),
    "tensorsolve": (torch.linalg.tensorsolve, (square(4).reshape(2, 2, 4), values(2, 2))),
    "dist": (torch.dist, (X, Y)),
    "trace": (torch.trace, (square(),)),
    "vander": (torch.linalg.vander, (values(3),)),
    "cdist 2": (torch.cdist, (X, Y + 0.013)),
    "cdist 1": (lambda x, y: torch.cdist(x, y, p=1.0), (X, Y + 0.013)),
    "cdist 3": (lambda x, y: torch.cdist(x, y, p=3.0), (X, Y + 0.013)),
    "cdist by products": (
        lambda x, y: torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"),
        (X, Y + 0.013),
    ),
    "pdist": (F.pdist, (X,)),
    "pdist 3": (lambda x: F.pdist(x, 3.0), (X,)),
    "pairwise_distance": (F.pairwise_distance, (X, Y)),
    "cosine_similarity": (F.cosine_similarity, (X, Y)),
    "normalize": (F.normalize, (X,)),
    "sparse.mm": (lambda x, y: torch.sparse.mm(x.to_sparse(), y), (X, values(4, 2))),
}


def _projectors(u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
    """A function of a decomposition that does not change with its signs."""
    return torch.cat([(u[:, 0:1] @ vh[0:1]).flatten(), u.square().flatten(), s])


TRANSFORMS: dict[str, Case] = {
    "fft": (lambda x: torch.fft.fft(x).abs(), (X + 1.2,)),
    "ifft": (torch.fft.ifft, (X,)),
    "rfft": (lambda x: torch.fft.rfft(x), (X,)),
    "irfft": (lambda x, y: torch.fft.irfft(torch.complex(x, y)), (X, Y)),
    "fft2": (torch.fft.fft2, (X,)),
    "fftn": (torch.fft.fftn, (X,)),
    "hfft": (lambda x, y: torch.fft.hfft(torch.complex(x, y)), (X, Y)),
    "stft": (
        lambda x: torch.stft(x, 4, 2, window=torch.ones(4).double(), return_complex=True),
        (values(2, 12),),
    ),
    "istft": (
        lambda x, y: torch.istft(torch.complex(x, y), 4, 2, window=torch.ones(4).double()),
        (X, Y),
    ),
    **{
        f"interpolate {mode}": (
            lambda x, mode=mode: F.interpolate(x, scale_factor=1.6, mode=mode),
            (SEQUENCE if mode == "linear" else IMAGE,),
        )
        for mode in ("nearest", "linear", "bilinear", "bicubic", "area")
    },
    "interpolate antialias": (
        lambda x: F.interpolate(x, (3, 3), mode="bilinear", antialias=True),
        (IMAGE,),
    ),
    "interpolate trilinear": (
        lambda x: F.interpolate(x, scale_factor=1.5, mode="trilinear"),
        (values(1, 1, 3, 3, 3),),
    ),
    "grid_sample": (
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        (IMAGE, unit(2, 3, 3, 2) * 0.97),
    ),
    "grid_sample bicubic": (
        lambda x, g: F.grid_sample(x, g, mode="bicubic", align_corners=False),
        (IMAGE, unit(2, 3, 3, 2) * 0.97),
    ),
    "grid_sample volume": (
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        (values(1, 2, 3, 3, 3), unit(1, 2, 2, 2, 3)),
    ),
    "affine_grid": (
        lambda t: F.affine_grid(t, [2, 1, 3, 3], align_corners=False),
        (values(2, 2, 3),),
    ),
}

LAYERS: dict[str, Case] = {
    "conv1d": (F.conv1d, (SEQUENCE, values(3, 4, 3), values(3))),
    "conv2d": (F.conv2d, (IMAGE, values(3, 4, 3, 3), values(3))),
    "conv2d grouped": (
        lambda x, w: F.conv2d(x, w, stride=2, padding=1, dilation=2, groups=2),
        (IMAGE, values(4, 2, 3, 3)),
    ),
    "conv3d": (F.conv3d, (values(1, 2, 3, 3, 3), values(2, 2, 2, 2, 2))),
    "conv_transpose1d": (F.conv_transpose1d, (SEQUENCE, values(4, 2, 3))),
    "conv_transpose2d": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2),
        (IMAGE, values(4, 2, 2, 2)),
    ),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), (SEQUENCE,)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), (IMAGE,)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (values(1, 2, 4, 4, 4),)),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), (SEQUENCE,)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (values(1, 2, 4, 4, 4),)),
    "lp_pool2d": (lambda x: F.lp_pool2d(x, 2.0, 2), (positive(1, 2, 4, 4),)),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 3), (SEQUENCE,)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 3), (IMAGE,)),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), (values(1, 2, 3, 3, 3),)),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 3), (SEQUENCE,)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 3), (IMAGE,)),
    "fractional_max_pool2d": (
        _kept(lambda x: F.fractional_max_pool2d(x, 2, output_size=3)),
        (IMAGE,),
    ),
    "embedding": (lambda w: F.embedding(WHERE, w), (X,)),
    "embedding_bag": (lambda w: F.embedding_bag(WHERE, w), (X,)),
    "embedding_bag weighted": (
        lambda w, s: F.embedding_bag(WHERE, w, per_sample_weights=s, mode="sum"),
        (X, Y),
    ),
    "embedding_bag max": (lambda w: F.embedding_bag(WHERE, w, mode="max"), (X,)),
    "local_response_norm": (lambda x: F.local_response_norm(x, 2), (IMAGE,)),
    "attention": (_attention, (values(2, 3, 4), values(2, 5, 4), values(2, 5, 3))),
    "multi-head attention": _module(
        nn.MultiheadAttention(4, 2, batch_first=True),
        *(values(2, 3, 4, seed=i) for i in range(3)),
    ),
    "attention, causal": (
        lambda *qkv: _attention(*qkv, is_causal=True),
        (values(2, 3, 4), values(2, 3, 4, seed=1), values(2, 3, 3)),
    ),
    "attention, masked": (
        lambda q, k, v, mask: _attention(q, k, v, attn_mask=mask),
        (values(2, 3, 4), values(2, 5, 4), values(2, 5, 3), values(3, 5)),
    ),
    "lstm, bidirectional, projected": _module(
        nn.LSTM(4, 3, num_layers=2, bidirectional=True, proj_size=2), values(3, 2, 4)
    ),
    "lstm": _module(nn.LSTM(4, 3), values(3, 2, 4)),
    "gru": _module(nn.GRU(4, 3), values(3, 2, 4)),
    "rnn": _module(nn.RNN(4, 3), values(3, 2, 4)),
    "lstm cell": _module(nn.LSTMCell(4, 3), X),
    "gru cell": _module(nn.GRUCell(4, 3), X),
}

LOSSES: dict[str, Case] = {
    "mse_loss": (F.mse_loss, (X, Y)),
    "l1_loss": (F.l1_loss, (X, Y + 0.013)),
    "smooth_l1_loss": (F.smooth_l1_loss, (X, Y + 0.013)),
    "huber_loss": (F.huber_loss, (X, Y + 0.013)),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS, positive(4)), (X,)),
    "cross_entropy of probabilities": (
        lambda x, t: F.cross_entropy(x, t.softmax(1), label_smoothing=0.1),
        (X, Y),
    ),
    "cross_entropy smoothed": (lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1), (X,)),
    "nll_loss": (lambda x: F.nll_loss(x, LABELS), (X,)),
    "nll_loss2d": (lambda x: F.nll_loss(x[..., None, None], LABELS[:, None, None]), (X,)),
    "binary_cross_entropy": (
        lambda x, t: F.binary_cross_entropy(x.sigmoid(), t.sigmoid(), P),
        (X, Y),
    ),
    "binary_cross_entropy_with_logits": (
        lambda x, t: F.binary_cross_entropy_with_logits(x, t.sigmoid(), P, pos_weight=positive(4)),
        (X, Y),
    ),
    "kl_div": (lambda x, y: F.kl_div(x, y, reduction="sum"), (X, P)),
    "kl_div of logarithms": (lambda x, y: F.kl_div(x, y, reduction="sum", log_target=True), (X, Y)),
    "poisson_nll_loss": (F.poisson_nll_loss, (X, P)),
    "gaussian_nll_loss": (F.gaussian_nll_loss, (X, Y, P)),
    "soft_margin_loss": (lambda x: F.soft_margin_loss(x, Y.sign()), (X,)),
    "hinge_embedding_loss": (lambda x: F.hinge_embedding_loss(x, Y.sign()), (X,)),
    "margin_ranking_loss": (
        lambda x, y: F.margin_ranking_loss(x, y, Y.sign()),
        (X, values(3, 4, seed=2) + 0.013),
    ),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x, LABELS), (X,)),
    "multilabel_margin_loss": (
        lambda x: F.multilabel_margin_loss(x, ints(1, 3, -1, 0).expand(3, 4)),
        (X,),
    ),
    "multilabel_soft_margin_loss": (lambda x: F.multilabel_soft_margin_loss(x, P / 2), (X,)),
    "cosine_embedding_loss": (lambda x, y: F.cosine_embedding_loss(x, y, ints(1, -1, 1)), (X, Y)),
    "triplet_margin_loss": (
        lambda x, y, z: F.triplet_margin_loss(x, y, z),
        (X, Y, values(3, 4, seed=2)),
    ),
    "ctc_loss": (
        lambda x: F.ctc_loss(
            x.log_softmax(-1), ints(1, 2, 1, 1).view(2, 2), ints(5, 5), ints(2, 2)
        ),
        (values(5, 2, 3),),
    ),
}

NORMS: dict[str, Case] = {
    "layer_norm": (
        lambda x, w, b: F.layer_norm(x, (4,), w, b),
        (X, values(4), values(4, seed=1)),
    ),
    "torch.layer_norm": (
        lambda x, w, b: torch.layer_norm(x, (4,), w, b),
        (X, values(4), values(4, seed=1)),
    ),
    "native_layer_norm": (
        lambda x, w, b: torch.native_layer_norm(x, (4,), w, b, 1e-5)[0],
        (X, values(4), values(4, seed=1)),
    ),
    "aten.layer_norm": (
        lambda x, w: (
            torch.ops.aten.layer_norm(x, [4], w) + torch.ops.aten.layer_norm.default(x, [4])
        ),
        (X, values(4)),
    ),
    "nn.LayerNorm": _module(nn.LayerNorm(4), X),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        (X, values(4), values(4, seed=1)),
    ),
    "batch_norm in evaluation": (
        lambda x, w, b: F.batch_norm(x, values(4), positive(4), w, b),
        (X, values(4, seed=1), values(4, seed=2)),
    ),
    "torch.batch_norm": (
        lambda x, w, b: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-5, False),
        (IMAGE, values(4), values(4, seed=1)),
    ),
    "native_batch_norm": (
        lambda x, w, b: torch.native_batch_norm(x, w, b, None, None, True, 0.1, 1e-5)[0],
        (IMAGE, values(4), values(4, seed=1)),
    ),
    "nn.BatchNorm2d": _module(nn.BatchNorm2d(4), IMAGE),
    "instance_norm": (
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        (SEQUENCE, values(4), values(4, seed=1)),
    ),
    "torch.instance_norm": (
        lambda x, w: torch.instance_norm(x, w, None, None, None, True, 0.1, 1e-5, False),
        (SEQUENCE, values(4)),
    ),
    "instance_norm, running statistics": (
        lambda x, w: F.instance_norm(x, values(4), positive(4), w, use_input_stats=False),
        (SEQUENCE, values(4)),
    ),
    "nn.InstanceNorm2d": _module(nn.InstanceNorm2d(4, affine=True), IMAGE),
    "group_norm": (
        lambda x, w, b: F.group_norm(x, 2, w, b),
        (SEQUENCE, values(4), values(4, seed=1)),
    ),
    "torch.group_norm": (lambda x, w: torch.group_norm(x, 2, w), (SEQUENCE, values(4))),
    "native_group_norm": (
        lambda x, w, b: torch.native_group_norm(x, w, b, 2, 4, 6, 2, 1e-5)[0],
        (SEQUENCE, values(4), values(4, seed=1)),
    ),
    "nn.GroupNorm": _module(nn.GroupNorm(2, 4), SEQUENCE),
    "rms_norm": (lambda x, w: F.rms_norm(x, (4,), w), (X, values(4))),
    "torch.rms_norm": (lambda x, w: torch.rms_norm(x, (4,), w), (X, values(4))),
    "_weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), (X, values(3, 1))),
    "_weight_norm last": (lambda v, g: torch._weight_norm(v, g, 1), (X, values(1, 4))),
    "_weight_norm middle": (lambda v, g: torch._weight_norm(v, g, 1), (SEQUENCE, values(1, 4, 1))),
    "_weight_norm of all": (lambda v, g: torch._weight_norm(v, g, -1), (X, values(1, 1))),
    "_weight_norm_interface": (
        lambda v, g: torch._weight_norm_interface(v, g)[0],
        (X, values(3, 1)),
    ),
    "parametrizations.weight_norm": _module(weight_norm(nn.Linear(4, 2)), X),
    "parametrizations.spectral_norm": _module(spectral_norm(nn.Linear(4, 2)).eval(), X),
    "parametrizations.orthogonal": _module(orthogonal(nn.Linear(4, 3)), X),
    "transformer layer": _module(_Layer(), values(2, 3, 4)),
}

CASES: dict[str, Case] = {
    **ELEMENTWISE,
    **ACTIVATIONS,
    **REDUCTIONS,
    **SHAPES,
    **LINEAR_ALGEBRA,
    **TRANSFORMS,
    **LAYERS,
    **LOSSES,
    **NORMS,
}
torch.set_rng_state(_BEFORE)


def load(device: str) -> dict[str, Case]:
    """The cases with their tensors on another device."""
    with torch.device(device):
        cases: dict[str, Case] = runpy.run_path(__file__)["CASES"]
    return cases
