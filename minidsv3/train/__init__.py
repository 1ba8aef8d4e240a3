"""How the model learns: the recipe, the optimisers, the loop, and what a run leaves on disk."""
