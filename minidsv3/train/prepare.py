"""What a run begins with: its text, a model in the precision of its recipe, and the two together.

Code that spreads a model over processes calls the parts itself, because the optimisers must be made
after it.
"""

import torch

from .. import fp8, hf
from ..command import UserError
from ..data.dataset import Dataset
from ..data.foreign import read_tokenizer
from ..device import choose_precision
from ..model.transformer import DeepSeekV3
from .optim import make_optimizers
from .team import ALONE
from .trainer import Trainer


def read_text(config, model_config, start=""):
    """The Dataset of a TrainConfig; start: a checkpoint, or its name, whose tokenizer it uses."""
    tokenizer = read_tokenizer(hf.locate(start), model_config) if start else None
    return Dataset(config.data, model_config.vocab_size, config.window, config.fim_rate,
                   config.seed, tokenizer, config.retrieval, config.splits)


def make_model(model_config, config, device, start=""):
    """A model on the device, with random weights or those of the checkpoint `start`."""
    torch.manual_seed(config.seed)
    model = DeepSeekV3(model_config)
    if start:
        begin_from(model, start)
    model = model.to(device)
    model.activation_dtype = choose_precision(config.precision, device)
    model.recompute = config.recompute
    return fp8.convert(model) if config.precision == "fp8" else model


def begin_from(model, folder):
    """Copy the weights of a checkpoint. UserError if the model has other ones."""
    source = hf.load(folder, torch.float32)
    try:
        if model.config.tie_word_embeddings and not source.config.tie_word_embeddings:
            raise RuntimeError("a head of its own would go")
        model.load_state_dict(source.state_dict())
    except RuntimeError:                         # torch names each tensor of another shape
        its = source.config.to_dict()
        changed = [f"{name}={value!r}, not {its[name]!r}"
                   for name, value in model.config.to_dict().items()
                   if value != its[name] and name != "max_position_embeddings"]
        raise UserError(f"--from {folder}: its weights do not fit a model with "
                        f"{', '.join(changed)}; leave what changes weights out of --set.") from None


def make_trainer(model_config, recipe, folder, device, saved=None, team=ALONE):
    """The text, a model, its optimisers, and the run that trains it, from a saved state or new.

    team: the processes of the run, over which it spreads the model before the optimisers are made.
    """
    # A run that goes on has its weights in the state, and its tokenizer beside it. Without a copy
    # the tokenizer is learnt again, unless it came from a checkpoint.
    own = saved and (recipe.start or (folder.path / "tokenizer.json").is_file())
    data = read_text(recipe, model_config, folder.path if own else recipe.start)
    model = team.spread(make_model(model_config, recipe, device, "" if saved else recipe.start))
    optimizers = team.finish(make_optimizers(model, recipe))
    trainer = Trainer(model, optimizers, data, recipe, folder, team)
    if saved:
        trainer.restore(folder.complete(saved, trainer))
    return trainer
