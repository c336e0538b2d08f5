"""First and second derivatives of a lower objective."""
