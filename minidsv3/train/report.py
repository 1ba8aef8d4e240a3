"""What a finished run says: its evaluation, pictures, a sample of its text, and the summary."""

import json
import platform
import sys
from contextlib import contextmanager

import torch

from .. import hf
from ..command import command_line, for_terminal, notice
from ..device import send
from ..files import first_line, write_text
from ..infer.text import complete
from ..measure import plots
from ..measure.evaluate import bits_per_byte, evaluate
from ..measure.memory import saved_by_eight_bits

SAMPLE_PROMPT = "def "


def run_and_report(trainer, resume):
    """Run a Trainer to its end and print what came of it -> exit code of the command.

    resume: the command that goes on with an interrupted run. Codes: 0 finished, 1 the loss is no
    number, 128 + the number of a signal that stopped it, which is 130 for Ctrl-C.
    """
    folder = trainer.folder.path
    try:
        summary = trainer.run()
    except KeyboardInterrupt:
        print(f"\nstopped at once; the run in {folder} is finished" if
              (folder / "summary.json").exists() else
              "\nstopped at once; --resume goes on from the last checkpoint")
        return 130
    except FloatingPointError as error:          # Diverged, or a layer in 8 bits
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not trainer.team.first:
        return 0 if summary else 128 + trainer.signal
    if summary is None:
        print(f"stopped after step {trainer.step} and saved; go on with: {resume}")
        return 128 + trainer.signal
    if (path := folder / "sample.txt").exists():
        print(f"\n{for_terminal(path.read_text(encoding='utf-8'))}\n")
    print(f"validation: {summary['val_bits_per_byte']:.4f} bits per byte "
          f"({summary['val_bits_per_byte_ema']:.4f} averaged weights), MaxVio by layer "
          f"{', '.join(f'{v:.2f}' for v in summary['max_vio'])}; {summary['seconds']:.0f} s of "
          f"training, {summary['tokens_per_s']:,.0f} tokens/s")
    if memory := summary.get("memory"):
        print("a backward pass keeps {kept:,} bytes (bfloat16: {kept_in_bf16:,}), the optimisers' "
              "moments {moments:,} (float32: {moments_in_fp32:,})".format(**memory))
    return 0


def finish(run):
    """Evaluate a Trainer's raw and averaged weights and write all exports -> the summary.

    The figures come first, so that a sample or a picture that fails cannot prevent them.
    """
    model, data = run.model, run.data
    everything = (data.inputs, data.targets, data.validation_bytes)
    raw = [p.detach().clone() for p in model.parameters()]
    result = evaluate(model, *everything)
    set_weights(model, run.average)
    averaged = bits_per_byte(model, *everything)
    run.folder.write_tensors("ema.safetensors", hf.each_released(model))
    set_weights(model, raw)
    figures = summary(run, result, averaged, sum(run.sizes) * run.config.window)
    if run.team.first:                           # the others have only taken part in computing
        write_figures(run, figures)
    with ornament("a sample"):
        text = sample(model, data.tokenizer, run.config.seed)          # in all processes
        if run.team.first:
            write_text(run.folder.path / "sample.txt", text)
    if run.team.first:
        with ornament("pictures"):
            draw(run.folder.read_metrics(), run.folder.path)
    return figures


def write_figures(run, figures):
    """The last validation in the log, then the summary, which says that the run is finished."""
    folder = run.folder
    metrics = folder.read_metrics()
    if metrics and metrics[-1]["step"] == run.step:        # somebody may have cut or removed it
        metrics[-1]["val_bits_per_byte"] = figures["val_bits_per_byte"]
        with folder.open_metrics(run.step - 1) as log:
            log.write(json.dumps(metrics[-1]) + "\n")
    folder.write_json("summary.json", figures)


@contextmanager
def ornament(what):
    """Do without what a finished run does not need, if it cannot be made, and say so."""
    try:
        yield
    except Exception as error:                   # of any kind: it must not cost the run
        notice(f"the run is finished, without {what}: {type(error).__name__}, {first_line(error)}")


@torch.no_grad()
def set_weights(model, weights):
    """Copy a list of tensors into the model's parameters."""
    if hasattr(model, "reshard"):                # FSDP may still hold weights of the last forward
        model.reshard()
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(weight)


def sample(model, tokenizer, seed, length=200):
    """Text that the trained model writes after "def ", as much as its window has room for."""
    prompt = len(tokenizer.encode_prompt(SAMPLE_PROMPT)) + 1           # one more at most, if healed
    length = min(length, model.config.max_position_embeddings - prompt)
    if length < 1:
        return SAMPLE_PROMPT
    pieces = complete(model, tokenizer, SAMPLE_PROMPT, length, temperature=0.7, top_p=0.95,
                      seed=seed)
    return SAMPLE_PROMPT + "".join(piece.text for piece in pieces)


def draw(metrics, folder):
    """loss.png and expert_load.png from the lines of metrics.jsonl, if there are any."""
    if not metrics:
        return
    plots.save(plots.loss_curve(metrics), folder / "loss.png")
    looked = [line for line in metrics if "expert_load" in line]
    if looked:
        figure = plots.expert_load([line["expert_load"] for line in looked],
                                   [line["step"] for line in looked])
        plots.save(figure, folder / "expert_load.png")


def summary(run, result, averaged, tokens):
    """The figures of summary.json; in FP8 also the memory that eight bits save."""
    model, config = run.model, run.config
    total, active = model.count_parameters()
    in_fp8 = config.precision == "fp8"
    figures = {"val_bits_per_byte": result.bits_per_byte, "val_bits_per_byte_ema": averaged,
               "seconds": round(run.seconds, 1), "steps": run.step, "tokens": tokens,
               "tokens_per_s": round(tokens / run.seconds, 1), "max_vio": result.max_vio,
               "mtp_agreement": result.mtp_agreement,
               "parameters": total, "parameters_active": active, "device": str(run.device),
               "dtype": "fp8" if in_fp8 else str(model.activation_dtype).removeprefix("torch."),
               "seed": config.seed, "torch": torch.__version__,
               "python": platform.python_version(), "corpus_sha256": run.data.sha256,
               "command": command_line(*sys.argv)}
    if in_fp8:
        tokens = send(run.data.batches.take(0, config.micro_batch), run.device)
        figures["memory"] = saved_by_eight_bits(model, tokens, run.optimizers)
    return figures
