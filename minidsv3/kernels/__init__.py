"""Faster forms of simple formulas: each is one function, tested against the simple form."""
