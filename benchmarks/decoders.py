"""The contenders of decode.py: prompts (B, T) and a number of new tokens -> Run.

Ours is what `generate` runs, with its bookkeeping. transformers gets a bare loop over its model,
without the overhead of its `generate`, and besides that `generate(use_mtp=True)`.
"""

import math
import tempfile
from itertools import product
from time import perf_counter
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3PreTrainedModel

from minidsv3 import hf
from minidsv3.infer.decoder import Decoder, Sequence
from minidsv3.infer.generation import advance

# Settings of transformers, (attention, experts). batched_mm is for decoding only: it copies the
# expert matrices for each token, which takes gigabytes for a long prompt.
FOR_PREFILL = list(product(("sdpa", "eager"), ("grouped_mm", "eager")))
FOR_DECODING = list(product(("sdpa", "eager"), ("grouped_mm", "eager", "batched_mm")))


class Run(NamedTuple):
    """What one contender did for a batch of prompts."""

    texts: list                                  # new tokens of each sequence
    prefill: float                               # time up to the first token [s]
    decode: float                                # time of all other tokens [s]
    cache: int                                   # size of the cache [bytes]
    passes: int                                  # of the main model, while decoding
    accepted: list = []                          # number of accepted drafts, by position
    tried: list = []                             # number of verified drafts, by position


def run_ours(model, drafts, tokens, new):
    """`generate`, timed separately for prefill and decoding."""
    begin = perf_counter()
    decoder = Decoder(model, len(tokens), tokens.size(1) + new + drafts, drafts)
    sequences = [Sequence(row, new, stop=()) for row in tokens.tolist()]
    decoder.start(sequences)
    middle = perf_counter()
    while advance(decoder):
        pass
    return Run([sequence.new for sequence in sequences], middle - begin, perf_counter() - middle,
               decoder.nbytes, decoder.passes - 1, decoder.accepted, decoder.tried)


@torch.inference_mode()
def run_theirs(model, best, tokens, new):
    """A bare greedy loop over transformers' model.

    best: settings for prefill and for decoding; switching between them is not timed.
    """
    cache, times, said = DynamicCache(config=model.config), [], []
    for setting, length in zip(best, (1, new)):
        switch(model, setting)
        begin = perf_counter()
        while len(said) < length:
            output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens = output.logits[:, -1:].argmax(-1)                  # (B, 1)
            said.append(tokens)
        times.append(perf_counter() - begin)
    return Run(torch.cat(said, dim=1).tolist(), *times, held(cache), new - 1)


@torch.inference_mode()
def run_with_mtp(model, module, best, tokens, new):
    """transformers' own speculative loop, for one sequence."""
    noted, sizes = {}, []                        # sizes: tokens of the prompt, 1, then of each step

    def has_drafted(_, arguments, options, output):
        if not noted:                            # first call: both models have read the prompt
            switch(model, best[1]), switch(module, best[1])
            noted.update(cache=options["mtp_cache"], middle=perf_counter())

    switch(model, best[0]), switch(module, best[0])
    listener = module.register_forward_hook(has_drafted, with_kwargs=True)
    streamer = SimpleNamespace(put=lambda said: sizes.append(said.numel()), end=lambda: None)
    begin = perf_counter()
    with patch.object(MtpModel, "from_pretrained", lambda *_, **__: module):
        made = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
                              use_mtp=True, max_new_tokens=new, streamer=streamer,
                              return_dict_in_generate=True)
    end = perf_counter()
    listener.remove()
    # A right draft beyond the last token counts as rejected.
    accepted, tried = ([sum(size > k + more for size in sizes[2:])
                        for k in range(module.num_mtp_layers)] for more in (1, 0))
    return Run(made.sequences[:, tokens.size(1):].tolist(), noted["middle"] - begin,
               end - noted["middle"], held(made.past_key_values) + held(noted["cache"]),
               len(sizes) - 2, accepted, tried)


def switch(model, setting):
    """Let transformers' model compute with this setting, (attention, experts)."""
    model.set_attn_implementation(setting[0])
    model.set_experts_implementation(setting[1])


def held(cache):
    """Bytes of transformers' cache. It keeps latents as ours does, and expands all at each step."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def load_theirs(ours):
    """Load our weights into transformers -> its model, and its MTP module or None."""
    first, depths = ours.config.num_hidden_layers, ours.config.num_nextn_predict_layers
    # transformers ignores MTP weights only under their number in the 671B model, 61.
    names = [rf"model\.layers\.{layer}\." for layer in range(first, first + depths)]
    with (tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
          patch.object(DeepseekV3PreTrainedModel, "_keys_to_ignore_on_load_unexpected", names)):
        hf.save(ours, folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        module = MtpModel.from_pretrained(theirs).eval() if depths else None
    theirs.generation_config.eos_token_id = None
    return theirs, module


def fastest(model, tokens, new):
    """The fastest settings for prefill and for decoding, from two trials of each."""
    prefill, decode = {}, {}
    for setting in 2 * FOR_DECODING:
        reading = setting if setting in FOR_PREFILL else FOR_PREFILL[0]
        run = run_theirs(model, (reading, setting), tokens, new)
        prefill[reading] = min(run.prefill, prefill.get(reading, math.inf))
        decode[setting] = min(run.decode, decode.get(setting, math.inf))
    return min(prefill, key=prefill.get), min(decode, key=decode.get)
