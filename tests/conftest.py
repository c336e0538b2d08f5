"""What every test starts from: one thread, a seed, no network, deterministic algorithms."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

for name, value in {
    "OMP_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)

torch.set_num_threads(1)
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent
SEED = 0


@pytest.fixture(autouse=True)
def seed() -> int:
    """The seed every random state was set to before the test."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    return SEED


@pytest.fixture(autouse=True)
def deterministic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Deterministic algorithms, except in tests that run on a CUDA device."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.node.get_closest_marker("cuda") is None)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; a test that asks for it runs once on the CPU and once on CUDA."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets; tests that read it are skipped where there is none."""
    folder = Path(os.environ.get("BLO_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set BLO_TEST_DATA to a folder that holds them")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked cuda where there is no CUDA device."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
