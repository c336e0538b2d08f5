"""The models that are fine-tuned: loaded, and given an adapter."""
