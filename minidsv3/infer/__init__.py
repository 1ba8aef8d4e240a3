"""How the model speaks."""

from .sampling import Generation as Generation
from .sampling import generate as generate
