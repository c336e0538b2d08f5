"""Sources of unknown quality, weighed by what they do for a small trusted target set."""
