"""The mathematics: pure functions and frozen dataclasses over tuples of tensors, usable without the
engine.
"""
