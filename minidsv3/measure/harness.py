"""Tasks of the lm-evaluation-harness: its own model class, task loader and table.

    python -m minidsv3.measure.evaluate DIR --tasks FILE.yaml      needs: pip install lm-eval

The folder is loaded by `transformers`, with none of our code, so the figures are those of any other
model in the harness. docs/checkpoints.md says how its bits per byte differ from ours.
"""

import torch

from .. import hf
from ..command import UserError, command_line
from ..device import loading_dtype
from ..files import first_line
from ..hf.names import FP8


def run_tasks(folder, file, device, window=None):
    """Evaluate a checkpoint folder on the task (or group of tasks) in a YAML file.

    window: longest context [tokens], None for the trained one. -> the harness's results and its
    table. Raises UserError if the harness is not installed, the file is no task, or the harness
    would load other numbers than we.
    """
    lm_eval, HFLM, TaskManager, make_table = library()
    if not file.is_file():
        raise UserError(f"there is no file {file}; --tasks needs the YAML file of a task.")
    hf.read_config(folder)                       # a folder that is no checkpoint ends here
    checkpoint = hf.Checkpoint(folder)
    if FP8 in checkpoint.dtypes.values():
        raise UserError(f"{folder} is in FP8, which others may read wrongly; first run: " +
                        command_line("python", "-m", "minidsv3.hf", "convert", folder, "NEW"))
    manager = TaskManager(include_defaults=False)          # the others take a minute to find
    try:
        manager.load([str(file)])
    except Exception as error:                   # of YAML, of a data set, of the user's own code
        raise UserError(f"{file} is no task that the harness can load ({first_line(error)}); "
                        "correct it, and keep its data in local files.") from None
    stored = checkpoint.raw("model.embed_tokens.weight").dtype
    # One window per pass: of two equal windows in a batch it scores one with the other's length.
    model = HFLM(pretrained=str(folder), device=str(device), max_length=window, batch_size=1,
                 dtype=loading_dtype(stored, torch.device(device)))
    results = lm_eval.simple_evaluate(model=model, tasks=[str(file)], task_manager=manager)
    return results["results"], make_table(results)


def library():
    """What is used of the harness. Raises UserError if it is not installed."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise UserError(f"--tasks needs the lm-evaluation-harness ({first_line(error)}); install "
                        "it with: pip install lm-eval") from None
    return lm_eval, HFLM, TaskManager, make_table
