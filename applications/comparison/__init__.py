"""Grids of runs: what is to be run, running it, and what the results say."""
