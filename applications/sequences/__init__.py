"""Classes that come one after the other, a task at a time."""
