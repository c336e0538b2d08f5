"""Versions, devices and attention kernels, for a report of a bug: ``python -m blo``."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

PACKAGES = (
    *("blo-torch", "torch", "numpy", "peft", "transformers", "accelerate", "trl", "datasets"),
    *("tokenizers", "safetensors", "torchmetrics", "triton", "flash-attn"),
)
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "WORLD_SIZE")
KERNELS = (
    *(SDPBackend.MATH, SDPBackend.FLASH_ATTENTION),
    *(SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION),
)
ORDERS = ("forward", "gradient", "second derivative")


def lines() -> Iterator[str]:
    """The report, a line each."""
    yield f"Python {platform.python_version()}, {platform.platform()}"
    for package in PACKAGES:
        yield f"{package} {installed(package)}"
    yield f"CPU: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield from devices()
    yield f"deterministic algorithms: {torch.are_deterministic_algorithms_enabled()}"
    yield f"float32 products: {torch.get_float32_matmul_precision()}"
    for name in VARIABLES:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"
    for place in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for kernel in KERNELS:
            yield f"attention on {place}, {kernel.name.lower()}: {reach(kernel, place)}"


def installed(package: str) -> str:
    """The version of a package, found without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def devices() -> Iterator[str]:
    """A line for each accelerator, or one that there is none."""
    yield f"CUDA of this torch: {torch.version.cuda}, available: {torch.cuda.is_available()}"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}: {found.name}, {found.total_memory / 2**30:.0f} GiB"


def reach(kernel: SDPBackend, place: str) -> str:
    """How far an attention kernel goes on a small input: what it computes, and why no further.

    Hypergradients with Hessian products need the second derivative.
    """
    dtype = torch.float32 if place == "cpu" else torch.bfloat16
    queries = torch.ones(1, 1, 8, 16, device=place, dtype=dtype, requires_grad=True)
    done: list[str] = []
    try:
        with sdpa_kernel(kernel):
            values: Tensor = scaled_dot_product_attention(queries, queries, queries)
        done.append(ORDERS[0])
        (first,) = torch.autograd.grad(values.square().sum(), queries, create_graph=True)
        done.append(ORDERS[1])
        torch.autograd.grad(first.square().sum(), queries)
        done.append(ORDERS[2])
    except RuntimeError as error:
        reason = str(error).splitlines()[0].removesuffix(".")
        return f"{', '.join(done)}, no more ({reason})" if done else f"no ({reason})"
    return ", ".join(done)


def main() -> int:
    """Print the report; returns the exit status."""
    sys.stdout.writelines(f"{line}\n" for line in lines())
    return 0


if __name__ == "__main__":
    sys.exit(main())
