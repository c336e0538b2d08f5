"""Hypergradient methods against each other: accuracy, speed, memory."""
