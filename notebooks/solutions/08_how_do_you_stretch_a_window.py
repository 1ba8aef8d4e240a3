"""Solutions to 08_how_do_you_stretch_a_window: read them after you have tried."""

import math

import torch


def yarn_frequencies(width, base, factor, window):
    """Both ends are pairs with a known number of turns; between them the ramp is linear in m."""
    def pair_that_turns(times):
        return width * math.log(window / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(32)), 0)
    high = math.ceil(pair_that_turns(1))
    m = torch.arange(width // 2)
    plain = base ** -(2 * m / width)                                   # (Dr/2,)
    ramp = ((m - low) / (high - low)).clamp(0, 1)                      # 0 keep ... 1 stretch
    return plain * (1 - ramp) + plain / factor * ramp


def sharpened_scale(width, factor):
    """Query and key bring the temperature once each, so their product has its square."""
    temperature = 0.1 * math.log(factor) + 1                           # ln 1 = 0: not stretched
    return width**-0.5 * temperature**2


def exact_answers(logits, tokens, answer_length):
    """The logits at a token predict the next one, so they are taken one place earlier."""
    predicted = logits[:, -answer_length - 1:-1].argmax(-1)            # (N, answer_length)
    right = predicted == tokens[:, -answer_length:]                    # (N, answer_length)
    return right.all(dim=1).double().mean()


def haystack(text, note, question, length, depth):
    """The text is cut first, so that nothing which was planted can be cut off."""
    room = length - len(note) - len(question)
    place = round(depth * room)
    return torch.cat([text[:place], note, text[place:room], question])
