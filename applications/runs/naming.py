"""Names in a run's folder that a comparison knows, too, without what a run imports."""

LOCK = "lock"
MARK = "mark.json"
NEXT = "next"
HANDED = "BLO_RUN_LOCK"
"""The environment variable by which ``compare`` hands its lock on: the number of a descriptor."""
