"""How we know: accounting, evaluation, and the one look for all figures."""
