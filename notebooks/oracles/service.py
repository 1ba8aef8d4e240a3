"""Notebook 11: how do you serve it?"""


def loads_of_gpus(places, load, per_gpu):
    """Load of each GPU if the copies of an expert share its load evenly.

    places: by GPU, the experts of its slots. ValueError says what is no placement.
    """
    if places is None:
        return None
    hosted = [expert for slots in places for expert in slots]
    for gpu, slots in enumerate(places):
        if len(slots) != per_gpu:
            raise ValueError(f"GPU {gpu} has {len(slots)} experts; it has room for {per_gpu}")
    for expert in hosted:
        if expert not in range(len(load)):
            raise ValueError(f"{expert} is no expert: there are {len(load)}, from 0")
    for expert in range(len(load)):
        if expert not in hosted:
            raise ValueError(f"expert {expert} is on no GPU")
    return [sum(load[expert] / hosted.count(expert) for expert in slots) for slots in places]


def replicate(load, slots):
    """Copies of each expert: one each, and the largest of all quotients load / 1, load / 2, ..."""
    extra = slots - len(load)
    quotients = [(-load[expert] / copies, expert, copies) for expert in range(len(load))
                 for copies in range(1, extra + 1)]
    winners = [expert for _, expert, _ in sorted(quotients)[:extra]]
    return [1 + winners.count(expert) for expert in range(len(load))]


def slots_of(chosen, slots, count):
    """Token by token and expert by expert, the slot of copy n mod c."""
    return [[slots[expert][n % count[expert]].item() for expert in experts]
            for n, experts in enumerate(chosen.tolist())]


def pour(amount, levels):
    """What each vessel gets: find the surface by halving, until the water in all is the amount."""
    low, high = min(levels), max(levels) + amount
    for _ in range(200):
        surface = (low + high) / 2
        if sum(max(0, surface - level) for level in levels) < amount:
            low = surface
        else:
            high = surface
    return [max(0, high - level) for level in levels]


def waits(arrivals, service):
    """How long each request waits: all work that is before it and not yet done."""
    found = []
    for n, now in enumerate(arrivals):
        # Of the last k requests before it, the first began at once: what of their work is left?
        left = [k * service - (now - arrivals[n - k]) for k in range(1, n + 1)]
        found.append(max([0, *left]))
    return found
