"""Notebook 09: why do pipelines have bubbles?"""


def idle_cells(rows, ranks, micro_batches):
    """Empty cells of a plan on squared paper, all rows as long as the longest.

    rows: a string for each rank, such as "F0 I0 W0 ."; ValueError names the first broken rule.
    """
    plan = [row.split() for row in rows]
    if len(plan) != ranks:
        raise ValueError(f"{len(plan)} rows for {ranks} ranks")
    length, time = max(map(len, plan)), {}
    for rank, row in enumerate(plan):
        for column, cell in enumerate(row):
            if cell.strip(".") == "":
                continue
            if (rank, cell) in time:
                raise ValueError(f"rank {rank} computes {cell} twice")
            time[rank, cell] = column
    for rank in range(ranks):
        for m in range(micro_batches):
            for kind in "FIW":
                if (rank, f"{kind}{m}") not in time:
                    raise ValueError(f"rank {rank} never computes {kind}{m}")
    if len(time) != 3 * ranks * micro_batches:
        raise ValueError("a cell is neither F, I, W with a number of a micro-batch, nor a dot")
    for (rank, cell), column in sorted(time.items(), key=lambda item: item[1]):
        kind, m = cell[0], cell[1:]
        needed = {"F": [(rank - 1, f"F{m}")], "I": [(rank, f"F{m}"), (rank + 1, f"I{m}")],
                  "W": [(rank, f"I{m}")]}[kind]
        for other in needed:
            if other in time and time[other] >= column:
                raise ValueError(f"rank {rank} computes {cell} at time {column}, but {other[1]} of "
                                 f"rank {other[0]} is ready only at {time[other] + 1}")
    for rank, row in enumerate(plan):
        for column in range(len(row)):
            alive = sum(cell[0] == "F" for cell in row[:column + 1]) - sum(
                cell[0] == "W" for cell in row[:column])
            if alive > ranks:
                raise ValueError(f"rank {rank} keeps {alive} micro-batches at time {column}, more "
                                 f"than {ranks}")
    return ranks * length - len(time)


def fewest_idle_cells(ranks):
    """The last rank waits for its first input, ranks - 1 cells; no rank is done before it."""
    return ranks * (ranks - 1)


def one_forward_one_backward(rank, ranks, micro_batches):
    """Greedy: go forwards while fewer than ranks - rank micro-batches are alive, else backwards."""
    order, forwards, backwards = [], 0, 0
    while backwards < micro_batches:
        if forwards < micro_batches and forwards - backwards < ranks - rank:
            forwards += 1
            order.append(forwards)
        else:
            backwards += 1
            order.append(-backwards)
    return order


def peak_alive(kinds):
    """The largest number of F minus the number of B and W, over all places in the list."""
    peak = 0
    for end in range(1, len(kinds) + 1):
        freed = sum(kind in "BW" for kind in kinds[:end])
        peak = max(peak, kinds[:end].count("F") - freed)
    return peak
