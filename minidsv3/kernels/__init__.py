"""Forms that are only faster than the obvious line: each is one function, tested against it."""
