"""Text that can be predicted only by looking back: notes with a key, and questions to them.

    # lamp: amber fox            a note: a key, and two words as its value
    # lamp                       the key again: what follows is known to who finds the note

Program text gives a small model little reason to look back, as the last few tokens say most. So a
share of the training windows (`TrainConfig.retrieval`) may hold such text instead. There are three
kinds, drawn with equal chances:

    dense         nothing but notes; their keys come again and again
    planted       ordinary text with notes in it, each asked later, at any distance
    assigned      ordinary text with `self.lamp = amber`, again `self.lamp = stone`, and later the
                  question `assert self.lamp`, which goes on with ` == stone`: the last value

The words are few and short, so that a small vocabulary has a token for each of them in each place.
Of another tokenizer a key or a value may be several tokens; nothing here depends on that.
"""

import numpy as np
import torch

WORDS = ("lamp river stone apple bread chair cloud dream eagle field glass horse island jacket "
         "kite lemon moon night ocean paper queen rabbit sand table uncle valley water yellow "
         "zebra anchor bridge candle").split()
VALUE_WORDS = 2                                  # of a note; a guess is right once in 32 x 32
SPACING = 12                                     # tokens of a window for each note in it, at least


class Notes:
    """The lines of all tasks as token ids of one tokenizer; keys and values are places in WORDS."""

    def __init__(self, tokenizer):
        def encoded(form):
            return [tokenizer.encode(form.format(word)) for word in WORDS]

        self.start_id = tokenizer.start_id
        self.keys, self.first, self.second = map(encoded, ("\n# {}", ": {}", " {}"))
        self.targets, self.sources = encoded("\nself.{}"), encoded(" = {}")
        self.asserts, self.answers = encoded("\nassert self.{}"), encoded(" == {}")

    def note(self, key, value):
        """A note -> its question and its answer, a list of ids each; together they are its line."""
        return self.keys[key], self.first[value[0]] + self.second[value[1]]

    def assignment(self, name, value):
        """`self.name = value` on a line of its own, as ids."""
        return self.targets[name] + self.sources[value]

    def assertion(self, name, value):
        """`assert self.name == value` -> its question and its answer, a list of ids each."""
        return self.asserts[name], self.answers[value]

    # ---- windows of training: text (n,) ids, NumPy's generator -> n ids ----

    def dense(self, text, generator):
        """As many ids as the text has, notes alone. The fewer keys, the sooner each comes again."""
        keys = draw_words(generator, 2, max(3, len(text) // 7))
        values, ids = draw_values(generator, len(WORDS), VALUE_WORDS), []
        while len(ids) < len(text):
            key = generator.choice(keys)
            ids += sum(self.note(key, values[key]), [])
        return ids[:len(text)]

    def planted(self, text, generator):
        """Notes in the text, each asked once; often a single one."""
        tasks = []
        for key in draw_words(generator, 1, len(text) // SPACING):
            line = sum(self.note(key, draw_values(generator, VALUE_WORDS)), [])
            tasks.append([line, line])
        return plant(text, tasks, generator)

    def assigned(self, text, generator):
        """Variables in the text, each given up to three values and then asked for the last."""
        tasks = []
        for name in draw_words(generator, 1, len(text) // SPACING):
            values = draw_values(generator, generator.integers(1, 4))
            lines = [self.assignment(name, value) for value in values]
            tasks.append([*lines, sum(self.assertion(name, values[-1]), [])])
        return plant(text, tasks, generator)


def plant(text, tasks, generator):
    """Put the lines of each task into a text of n ids, in their order -> n ids.

    tasks: lists of lines, the question last. Half of the distances between the question and the
    line before it are uniform, half have a uniform logarithm, so that both long and short ones are
    frequent. Tasks without room are left out.
    """
    while (room := len(text) - sum(len(line) for task in tasks for line in task)) < 0:
        tasks.pop()
    planted = []
    for task in tasks:
        distance = (generator.integers(0, room + 1) if generator.random() < 0.5
                    else round(np.exp(generator.uniform(0, np.log(room + 1)))) - 1)
        question = generator.integers(distance, room + 1)
        earlier = generator.integers(0, question - distance + 1, len(task) - 2)
        places = [*sorted(earlier), question - distance, question]
        planted += zip(places, task, strict=True)
    return insert(text, planted)[:len(text)]


def insert(text, planted):
    """Insert [(place, ids)] into a text of ids; of two at one place the first stays the first."""
    pieces, start = [], 0
    for place, ids in sorted(planted, key=lambda each: each[0]):
        pieces += [text[start:place], ids]
        start = place
    return np.concatenate([*pieces, text[start:]]).astype(np.int64)


def some_notes(characters, seed=0):
    """Lines of all tasks as text, from which a tokenizer learns their words."""
    generator, lines, length = np.random.default_rng(seed), [], 0
    while length < characters:
        a, b, c = (WORDS[place] for place in draw_values(generator, 3))
        lines.append(f"\n# {a}: {b} {c}\nself.{a} = {b}\nassert self.{a} == {b}")
        length += len(lines[-1])
    return "".join(lines)


def draw_words(generator, least, most):
    """Different places in WORDS; their number has a uniform logarithm between least and most."""
    most = max(least, min(most, len(WORDS)))
    count = round(np.exp(generator.uniform(np.log(least), np.log(most))))
    return generator.permutation(len(WORDS))[:count]


def draw_values(generator, *shape):
    """Places in WORDS, drawn at random."""
    return generator.integers(0, len(WORDS), shape)


class Mixture:
    """Batches in which a share of the windows is retrieval text.

    Sample n is a function of (seed, n), as in Batches.
    """

    def __init__(self, batches, notes, share, seed):
        self.batches, self.notes, self.share, self.seed = batches, notes, share, seed
        self.tokens_per_epoch = batches.tokens_per_epoch

    def take(self, start, count):
        """Samples start .. start + count - 1 -> (N, T+1) int64."""
        windows = self.batches.take(start, count).numpy()              # (N, T+1)
        for window, sample in zip(windows, range(start, start + count)):
            generator = np.random.default_rng([self.seed, sample])
            if generator.random() < self.share:
                kind = generator.choice([self.notes.dense, self.notes.planted, self.notes.assigned])
                window[:] = kind(window, generator)
        return torch.from_numpy(windows)
