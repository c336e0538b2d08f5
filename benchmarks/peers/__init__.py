"""This library beside others: the same rounds on the same tensors, errors before times.

A library is one registered `Library`; a problem is one registered `Task`. `docs/benchmarks.md` says
how a library, a method or a problem of your own enters.
"""
