"""PEFT's private extension points, and the arithmetic that all methods share."""
