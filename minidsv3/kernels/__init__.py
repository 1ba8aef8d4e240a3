"""Forms that are only faster than the obvious line: each one function, tested against that line."""
