"""How the model generates text: sampling (one token), speculative (drafts), decoder (one step),
generation (tokens in, tokens out), text (text in, text out). The room `serve` deploys it.
"""

from .generation import Generation as Generation
from .generation import generate as generate
