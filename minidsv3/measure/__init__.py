"""How results are measured: parameters and cost, evaluation, memory, and the style of figures."""
