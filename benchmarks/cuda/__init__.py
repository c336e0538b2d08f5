"""The library on one CUDA device, in one command: ``python -m benchmarks.cuda``.

It needs torch, transformers and peft, and nothing else. See ``python -m benchmarks.cuda --help``.
"""
