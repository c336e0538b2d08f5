"""An adapter in training: its two levels, its problems, its ranks, its second phase."""
