"""How the model speaks: sampling (one token), speculative (drafts), decoder (one step), generation
(tokens in, tokens out), text (text in, text out), engines (prefill and decode apart).
"""

from .generation import Generation as Generation
from .generation import generate as generate
