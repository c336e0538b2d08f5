"""The grid that decides whether the upper levels of BiLoRA and BiDoRA pay on small data."""
