"""Needle in a haystack: is a note found, wherever it stands in a long text? (Report, figure 8.)

    python -m minidsv3.context.needle checkpoints/long              a map of lengths and depths
    python -m minidsv3.context.needle RUN_DIR --task last --trials 50

A haystack is real text that the model was not trained on. In it stands a note, `# lamp: amber fox`,
and at its end the question, `# lamp`. The model must answer `: amber fox`, every token of it. Depth
0 is the beginning of the text, depth 1 the place just before the question. Two tasks are harder, in
the manner of RULER (arXiv 2404.06654):

    single     one note
    several    four notes with different keys, of which one is asked
    last       `self.lamp = amber`, two more values later, then `assert self.lamp`: the last value

`accuracy` measures one cell of the map. A guess is right once in 1,024 (last: once in 32).
"""

import functools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import hf
from ..command import Parser, UserError, answer
from ..data import corpus
from ..data.batches import encode_documents
from ..data.foreign import read_tokenizer
from ..data.retrieval import VALUE_WORDS, WORDS, Notes, draw_values, insert
from ..device import choose_device, choose_threads, send
from ..files import make_folder, refuse_files, write_text
from ..measure import plots

CHANCE = {"single": len(WORDS)**-VALUE_WORDS, "several": len(WORDS)**-VALUE_WORDS,
          "last": 1 / len(WORDS)}
TASKS = tuple(CHANCE)
NOTES = 4                                        # of the task `several`
VALUES = 3                                       # of the task `last`
TOKENS_AT_ONCE = 8192
LENGTHS = (1, 2, 4, 8, 16, 32, 40)               # of texts, in windows before extension
LONGEST = 4096                                   # of a map, unless asked for


def haystack(task, notes, text, length, depth, generator):
    """One trial of a task -> its ids, `length` of them, and the answer's ids, which they end with.

    They begin with the tokenizer's start token. text: a long array of ids, of which a random part
    is taken. generator: NumPy's. Raises UserError if the task does not fit into the length or the
    text is too short.
    """
    key, *other_keys = generator.permutation(len(WORDS))[:NOTES]
    if task == "last":
        *earlier, value = draw_values(generator, VALUES)
        asked = notes.assignment(key, value)
        others = [notes.assignment(key, each) for each in earlier]
        question, expected = notes.assertion(key, value)
    else:
        value = draw_values(generator, VALUE_WORDS)
        question, expected = notes.note(key, value)
        asked, others = question + expected, []
        if task == "several":
            others = [sum(notes.note(each, draw_values(generator, VALUE_WORDS)), [])
                      for each in other_keys]
    lines = [asked, *others, question, expected]
    room = length - 1 - sum(map(len, lines))
    if room < 0:
        raise UserError(f"a length of {length} tokens has no room for the task {task!r}, which "
                        f"takes {length - room}; choose a longer one.")
    if room > len(text):
        raise UserError(f"the text has {len(text)} tokens, too few for a length of {length}; "
                        "choose a shorter length, or give more text.")
    start, place = generator.integers(0, len(text) - room + 1), round(depth * room)
    elsewhere = generator.integers(0, (place if task == "last" else room) + 1, len(others))
    planted = [*zip(elsewhere, others), (place, asked), (room, question + expected)]
    planted = [(1 + place, ids) for place, ids in planted]             # after the start token
    return insert([notes.start_id, *text[start:start + room]], planted), expected


@torch.inference_mode()
def accuracy(model, tokenizer, length, depth, trials=20, seed=0, task="single", text=None):
    """The share of trials in which a model answers exactly, every token of the answer.

    length: tokens of text and question with the answer; depth: place of the note asked, 0 to 1;
    text: ids of real text, an array; None: the validation part of the Python standard library.
    Trials depend on (task, length, depth, seed) alone, not on the model. Raises UserError for a
    value out of range.
    """
    if task not in CHANCE:
        raise UserError(f"task={task!r} is unknown; choose {', '.join(TASKS)}.")
    if not 0 <= depth <= 1:
        raise UserError(f"depth={depth} is a share of the text; choose 0 to 1.")
    for name, value, least in (("trials", trials, 1), ("length", length, 1), ("seed", seed, 0)):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise UserError(f"{name}={value!r} must be a whole number of at least {least}.")
    text, notes = unseen_text(tokenizer) if text is None else text, Notes(tokenizer)
    generator = np.random.default_rng([seed, TASKS.index(task), length, round(1000 * depth)])
    rows = [haystack(task, notes, text, length, depth, generator) for _ in range(trials)]
    device, right = model.embed_tokens.weight.device, 0
    was_training = model.training
    model.eval()
    for start in range(0, trials, max(1, TOKENS_AT_ONCE // length)):
        some = rows[start:start + max(1, TOKENS_AT_ONCE // length)]
        tokens = send(torch.from_numpy(np.stack([ids for ids, _ in some])), device)    # (N, T)
        hidden, _ = model.hidden_states(tokens)                        # (N, T, C)
        for state, (_, expected) in zip(hidden, some):
            logits = model.lm_head(state[-len(expected) - 1:-1])       # (answer, V)
            right += logits.argmax(-1).tolist() == expected
    model.train(was_training)
    return right / trials


@functools.lru_cache(maxsize=1)
def unseen_documents():
    """The validation part of the standard library, which no run on python-stdlib has trained on."""
    return corpus.split(corpus.load().documents)[1]


def ids_of(documents, tokenizer):
    """All documents as one array of ids."""
    return np.concatenate(encode_documents(documents, tokenizer))


def unseen_text(tokenizer):
    """The ids of the standard library's validation part."""
    return ids_of(unseen_documents(), tokenizer)


def grid(model, tokenizer, lengths, depths, trials=20, seed=0, task="single", text=None):
    """Accuracy for all depths (rows) and lengths (columns), as a list of rows."""
    text = unseen_text(tokenizer) if text is None else text
    cells = [(depth, length) for depth in depths for length in lengths]
    bar = tqdm(cells, task, unit="cell", dynamic_ncols=True, leave=False, file=sys.stderr)
    flat = []
    for depth, length in bar:
        flat.append(accuracy(model, tokenizer, length, depth, trials, seed, task, text))
        bar.set_postfix_str(f"mean {sum(flat) / len(flat):.0%}")
    return [flat[i:i + len(lengths)] for i in range(0, len(flat), len(lengths))]


@plots.style()
def heat_map(cells, lengths, depths, title, ax=None):
    """The map of `grid` as a picture: bright where notes are found."""
    return plots.heat_map(
        cells, "share of exact answers", title, [f"{depth:.0%}" for depth in depths],
        [f"{length:,}" for length in lengths], "length of the text [tokens]",
        "depth of the note", texts=[[f"{cell:.0%}" for cell in row] for row in cells], ax=ax)


# ---- the command ----

def default_lengths(config):
    """1 to 32 times the window before extension, and a little beyond, up to LONGEST tokens."""
    yarn = config.rope_scaling
    window = yarn.original_max_position_embeddings if yarn else config.max_position_embeddings
    lengths = [times * window for times in LENGTHS]
    return [length for length in lengths if length <= LONGEST] or [LONGEST]


def measure(arguments, out):
    """The map of the checkpoint named on the command line, as the dict of needle.json.

    The folder `out` is made before it, so that nothing is measured in vain.
    """
    device = choose_device(arguments.device)
    choose_threads(arguments.threads)
    folder = hf.locate(arguments.folder)
    model = hf.load(folder, device=device)
    tokenizer = read_tokenizer(folder, model.config)
    lengths = arguments.lengths or default_lengths(model.config)
    model.config.check_length(max(lengths))
    depths = np.linspace(0, 1, arguments.depths).tolist()
    documents = corpus.load(arguments.data).documents if arguments.data else unseen_documents()
    make_folder(out)
    begin = time.perf_counter()
    cells = grid(model, tokenizer, lengths, depths, arguments.trials, arguments.seed,
                 arguments.task, ids_of(documents, tokenizer))
    return {"model": str(arguments.folder), "task": arguments.task,
            "trials": arguments.trials, "seed": arguments.seed, "lengths": lengths,
            "depths": depths, "window": model.config.max_position_embeddings,
            "chance": CHANCE[arguments.task],
            "accuracy": cells, "mean": float(np.mean(cells)),
            "seconds": round(time.perf_counter() - begin, 1)}


def run(arguments):
    """Measure the map, print it, and write needle.json and needle.png -> exit code."""
    out = Path(arguments.out or Path("runs/needle") / Path(arguments.folder).resolve().name)
    refuse_files(out)
    figures = measure(arguments, out)
    lengths, depths, cells = (figures[name] for name in ("lengths", "depths", "accuracy"))
    print("depth" + "".join(f"{length:8,}" for length in lengths))
    for depth, row in zip(depths, cells):
        print(f"{depth:5.0%}" + "".join(f"{cell:8.0%}" for cell in row))
    print(f"mean {figures['mean']:.1%}; a guess is right in {figures['chance']:.2%}; trained "
          f"window {figures['window']:,} tokens; {figures['seconds']:.0f} s")
    write_text(out / "needle.json", json.dumps(figures, indent=2) + "\n")
    title = f"{figures['mean']:.0%} of the answers are exact (task: {figures['task']})"
    plots.save(heat_map(cells, lengths, depths, title), out / "needle.png")
    print(f"wrote needle.json and needle.png to {out}")
    return 0


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(prog="python -m minidsv3.context.needle", description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="run or checkpoint, or a name on the hub")
    parser.add_argument("--task", choices=TASKS, default="single", help="which question [single]")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="TOKENS",
                        help="[1 to 32 times the window before extension, and 40 times]")
    parser.add_argument("--depths", type=int, default=5, metavar="N", help="rows of the map [5]")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="per cell [20]")
    parser.add_argument("--seed", type=int, default=0, help="of texts and notes [0]")
    parser.add_argument("--data", help="the text, as for train_tiny.py "
                        "[validation part of the Python standard library]")
    parser.add_argument("--out", metavar="DIR", help="folder for the results [runs/needle/NAME]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads [one per core]")
    parsed = parser.parse_args(arguments)
    for name, least in (("depths", 1), ("trials", 1), ("seed", 0)):
        if getattr(parsed, name) < least:
            raise UserError(f"--{name} {getattr(parsed, name)} must be at least {least}.")
    return parsed


def main(arguments=None):
    """Run; bad input ends in one line and exit code 2."""
    return answer(lambda: run(parse_arguments(arguments)), unread=True)


if __name__ == "__main__":
    sys.exit(main())
