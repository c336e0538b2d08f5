"""Linear systems known by their products: vectors, solvers, what they report."""
