"""Pages and figures to look at, and files that are written whole."""
