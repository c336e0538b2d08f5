"""Commands on top of the adapters and the engine: ``python -m applications.NAME``."""

import os

# OpenMP threads that wait by spinning make a step ten times slower as soon as another process
# wants a core (measured on two cores). OpenMP reads the variable when PyTorch is first imported,
# so it is set here, before that; a value that the user chose stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
