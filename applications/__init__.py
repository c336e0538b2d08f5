"""Commands on top of the adapters and the engine: ``python -m applications.NAME``."""
