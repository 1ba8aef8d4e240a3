"""How the model speaks."""
