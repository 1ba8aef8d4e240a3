"""How the model speaks: sampling (one token), speculative (drafts), decoder (one step), generation
(tokens in, tokens out), text (text in, text out), handover (prefill and decode apart), serving (in
one process or two), engines (the command).
"""

from .generation import Generation as Generation
from .generation import generate as generate
