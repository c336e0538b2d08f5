"""One published method a file, and what several of them share."""
