"""The models of train.py, and a model in training: whole optimiser steps, a clock beside them.

The step is the one of minidsv3/train/step.py, for our model and for the dense GPT alike.
"""

import torch
from dense_gpt import DenseGPT, matched_to

from minidsv3.device import choose_precision, clock
from minidsv3.measure.evaluate import bits_per_byte
from minidsv3.model.transformer import DeepSeekV3
from minidsv3.train.optim import make_optimizers
from minidsv3.train.step import Step

WITH_MTP, WITHOUT_MTP, DENSE = "ours", "ours without MTP", "dense GPT"
MODELS = WITH_MTP, WITHOUT_MTP, DENSE            # in the order in which they run


def make_model(name, config):
    """One of MODELS with new weights; config is that of ours with MTP."""
    if name == DENSE:
        return DenseGPT(matched_to(config))
    return DeepSeekV3(config if name == WITH_MTP else config.replace(num_nextn_predict_layers=0))


class Contender:
    """A model in training, and the seconds its optimiser steps have taken."""

    def __init__(self, make, recipe, device):
        torch.manual_seed(recipe.seed)
        self.model, self.recipe, self.device = make().to(device), recipe, device
        self.model.activation_dtype = choose_precision(recipe.precision, device)
        self.update = Step(self.model, make_optimizers(self.model, recipe), recipe)
        self.taken, self.seconds = 0, 0.0

    def step(self, batches, progress):
        """The next optimiser step, at a share of the whole run -> training loss [nats]."""
        size = self.recipe.batch_size
        tokens = batches.take(self.taken * size, size).to(self.device)  # (B, T+1)
        begin = clock(self.device)
        loss = self.update.read(self.update(tokens, progress, self.taken)).total
        self.seconds += clock(self.device) - begin
        self.taken += 1
        return loss

    def at_work(self):
        """Parameters that work on one token in training, MTP's and its use of the head included.

        With mtp_every = n those of MTP work in every n-th step, so a token meets 1/n of them.
        """
        if not isinstance(self.model, DeepSeekV3):
            return sum(parameter.numel() for parameter in self.model.parameters())
        config = self.model.config
        each = config.vocab_size * config.hidden_size - config.idle_parameters  # head, no idle ones
        mtp = (len(self.model.mtp) * each
               + sum(parameter.numel() for parameter in self.model.mtp.parameters()))
        return self.model.count_parameters()[1] + mtp // self.recipe.mtp_every

    def bits_per_byte(self, data):
        """On all of the validation text."""
        return bits_per_byte(self.model, data.inputs, data.targets, data.validation_bytes)
