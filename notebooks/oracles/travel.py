"""Notebook 10: how do tokens find their experts?"""


def dispatch(chosen, per_gpu, gpus):
    """GPU by GPU, the numbers of the tokens with an expert there: chosen, experts per token."""
    boxes = []
    for gpu in range(gpus):
        experts = set(range(gpu * per_gpu, (gpu + 1) * per_gpu))
        boxes.append([n for n in range(len(chosen)) if experts & set(chosen[n])])
    return boxes


def copies_table(boxes, tokens, gpus):
    """How often each token is in the list of each GPU, (gpus, tokens).

    boxes: a list of token numbers for each GPU. ValueError says what is no such list.
    """
    if boxes is None:
        return None
    if len(boxes) != gpus:
        raise ValueError(f"{len(boxes)} lists for {gpus} GPUs")
    for box in boxes:
        for number in box:
            if number not in range(tokens):
                raise ValueError(f"there is no token {number}: there are {tokens}, from 0")
        if list(box) != sorted(box):
            raise ValueError(f"the tokens in {list(box)} are not in their order")
    return [[list(box).count(number) for number in range(tokens)] for box in boxes]


def combine(sent, returned, count):
    """Token by token, the sum of all values that came back for it."""
    pairs = [pair for box, values in zip(sent, returned) for pair in zip(box, values)]
    return [sum(value for number, value in pairs if number == n) for n in range(count)]


def serve(x, chosen, weights, first, count):
    """Row by row, the weighted sum over the experts here; expert e multiplies by e + 1."""
    rows = zip(x.tolist(), chosen.tolist(), weights.tolist())
    return [sum(weight * (expert + 1) * value for expert, weight in zip(experts, row)
                if expert in range(first, first + count)) for value, experts, row in rows]


def copies_between_nodes(chosen, home, per_gpu, gpus_per_node, hops):
    """Copies of one token that go to another node than that of GPU `home`."""
    per_node, own, places = per_gpu * gpus_per_node, home // gpus_per_node, []
    for expert in chosen:
        place = expert // per_gpu if hops == 1 else expert // per_node
        if expert // per_node != own and place not in places:
            places.append(place)
    return len(places)
