"""python -m blo: what a report of a bug needs."""

import platform

import pytest
import torch

from blo.__main__ import main


def test_the_report_names_versions_devices_and_attention_kernels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main() == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Python {platform.python_version()}")
    assert f"\ntorch {torch.__version__}" in said
    assert f"CUDA of this torch: {torch.version.cuda}" in said
    assert "attention on cpu, math: forward, gradient, second derivative\n" in said
    # The fused kernel of the CPU has no second derivative: what the report is there to say.
    assert "attention on cpu, flash_attention: forward, gradient, no more (" in said
