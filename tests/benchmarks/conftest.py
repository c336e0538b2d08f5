"""The tiny model and data of the applications' tests."""

from tests.applications.conftest import datasets_cache, tiny_data, tiny_model

__all__ = ["datasets_cache", "tiny_data", "tiny_model"]
