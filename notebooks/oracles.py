"""What the checkers compare with: each equation once more, as plain as it can be written.

Loops over single numbers, in float64, straight from the report; slow on purpose, and independent
of the package and of every solution.
"""

import math

import torch

# 01: what is DeepSeek-V3?

def rms_norm(x, gain, eps):
    """Every number of every row divided by the row's root mean square."""
    rows = x.reshape(-1, x.size(-1)).tolist()
    normed = [[g * value / math.sqrt(sum(v * v for v in row) / len(row) + eps)
               for value, g in zip(row, gain.tolist())] for row in rows]
    return torch.tensor(normed, dtype=torch.float64).view(x.shape)


def swiglu(x, gate, up, down):
    """Row by row and channel by channel; silu written out."""
    def times(matrix, vector):
        return [sum(m * v for m, v in zip(row, vector)) for row in matrix.tolist()]

    rows = []
    for row in x.tolist():
        inner = [g / (1 + math.exp(-g)) * u for g, u in zip(times(gate, row), times(up, row))]
        rows.append(times(down, inner))
    return torch.tensor(rows, dtype=torch.float64)


def active_parameters(width, inner, routed, shared, chosen):
    """One matrix after the other, as a token meets them."""
    total = 0
    for _ in range(shared + chosen):
        for rows, columns in [(inner, width), (inner, width), (width, inner)]:
            total += rows * columns
    return total + routed * width


def bits_a_byte(nats, text):
    """log2 of the probability of the whole text, over the length of its file."""
    return sum(value / math.log(2) for value in nats.tolist()) / len(text.encode("utf-8"))


def mtp_pairs(tokens):
    """Position i, what follows it, and what follows that, as long as there is one."""
    t = tokens.tolist()
    return torch.tensor([(i, t[i + 1], t[i + 2]) for i in range(len(t) - 2)])


# 02: why does a 671B model need so little cache?

def cache_bytes_per_token(layers, heads, kv_lora_rank, rope_dim, width):
    """Counted one number at a time: a layer keeps a latent and a rotary key."""
    total = 0
    for _ in range(layers):
        for _ in range(kv_lora_rank):
            total += width
        for _ in range(rope_dim):
            total += width
    return total


def absorb_query(q_nope, w_uk):
    """Sum over n of q[h, t, n] W_UK[h, n, r], one product at a time -> (H, T, Rkv)."""
    H, T, Dn = q_nope.shape
    absorbed = torch.zeros(H, T, w_uk.shape[2], dtype=torch.float64)
    for h in range(H):
        for t in range(T):
            for n in range(Dn):
                for r in range(w_uk.shape[2]):
                    absorbed[h, t, r] += q_nope[h, t, n].double() * w_uk[h, n, r].double()
    return absorbed


def keys_of_heads(kv, heads, nope):
    """Walk along each token's row: nope numbers of a head's key, then its value -> (H, S, Dn)."""
    each = kv.shape[1] // heads
    keys = torch.zeros(heads, len(kv), nope, dtype=torch.float64)
    for s, row in enumerate(kv.tolist()):
        for place, number in enumerate(row):
            head, channel = divmod(place, each)
            if channel < nope:
                keys[head, s, channel] = number
    return keys


def break_even(kv_lora_rank, nope, value):
    """Solved in steps: one head, per cached token; expanding costs once, attending per query."""
    expanding = kv_lora_rank * nope + kv_lora_rank * value
    expanded_query = nope + value                    # the rotary part costs both the same
    absorbed_query = kv_lora_rank + kv_lora_rank
    return expanding / (absorbed_query - expanded_query)


def expanded_attention(q_nope, q_rope, c_kv, k_rope, w_uk, w_uv, scale):
    """Eq. 2, 4, 5, 9 and 10 for the last T of S positions, each head and pair alone: (H, T, Dv)."""
    q_nope, q_rope, c_kv, k_rope, w_uk, w_uv = (
        x.double() for x in (q_nope, q_rope, c_kv, k_rope, w_uk, w_uv))
    H, T, S = len(w_uk), q_nope.shape[1], len(c_kv)
    outputs = torch.zeros(H, T, w_uv.shape[1], dtype=torch.float64)
    for h in range(H):
        keys = [torch.cat([w_uk[h] @ c_kv[s], k_rope[s]]) for s in range(S)]
        values = [w_uv[h] @ c_kv[s] for s in range(S)]
        for t in range(T):
            query = torch.cat([q_nope[h, t], q_rope[h, t]])
            seen = range(S - T + t + 1)              # itself and all before
            powers = [math.exp(scale * float(query @ keys[s])) for s in seen]
            for s in seen:
                outputs[h, t] += powers[s] / sum(powers) * values[s]
    return outputs


# 03: how does it know the order of the words?

def frequencies(width, base):
    """Angle a token of pair m: base^(-2m / width), one pair after the other -> (width/2,)."""
    return torch.tensor([float(base) ** (-2 * m / width) for m in range(width // 2)],
                        dtype=torch.float64)


def turns(window, theta):
    """How often each pair goes round within a window: window / wavelength -> (Dr/2,)."""
    return torch.tensor([window / (2 * math.pi / angle) for angle in theta.tolist()],
                        dtype=torch.float64)


def rotate(x, position, theta):
    """Neighbouring channels (2m, 2m+1) turned by position * theta_m, with cosine and sine."""
    turned = []
    for m, angle in enumerate(theta.tolist()):
        a, b = x[2 * m].item(), x[2 * m + 1].item()
        cos, sin = math.cos(position * angle), math.sin(position * angle)
        turned += [a * cos - b * sin, a * sin + b * cos]
    return torch.tensor(turned, dtype=torch.float64)


def angles(theta, new, cached):
    """Angles of the tokens cached, cached + 1, ..., cached + new - 1 -> (new, Dr/2)."""
    return torch.tensor([[position * angle for angle in theta.tolist()]
                         for position in range(cached, cached + new)], dtype=torch.float64)


def yarn_frequencies(width, base, factor, window, beta_fast=32, beta_slow=1):
    """YaRN as released: a ramp in the pair's index between two numbers of turns -> (width/2,)."""
    def pair_that_turns(times):
        return width * math.log(window / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), width - 1)
    high = high if high > low else low + 0.001
    blended = []
    for m in range(width // 2):
        plain = float(base) ** (-2 * m / width)
        ramp = min(max((m - low) / (high - low), 0), 1)
        blended.append((1 - ramp) * plain + ramp * plain / factor)
    return torch.tensor(blended, dtype=torch.float64)


# 04: what do 256 experts do?


def group_scores(affinity, bias, n_group):
    """The two best biased affinities of each group, found by sorting."""
    rows = []
    for s in affinity.tolist():
        choice = [a + b for a, b in zip(s, bias.tolist())]
        size = len(choice) // n_group
        groups = [choice[g * size:(g + 1) * size] for g in range(n_group)]
        rows.append([sum(sorted(group)[-2:]) for group in groups])
    return torch.tensor(rows)


def gates(affinity, bias, K, scale):
    """eq. 13 and 16 for one token, without groups."""
    s, b = affinity.tolist(), bias.tolist()
    chosen = sorted(range(len(s)), key=lambda e: -(s[e] + b[e]))[:K]
    total = sum(s[e] for e in chosen)
    return torch.tensor([scale * s[e] / total if e in chosen else 0.0 for e in range(len(s))])


def moe_output(u, shared, routed, affinity, experts, scale):
    """eq. 12 without the residual, number by number; an expert is a matrix."""
    u, s, chosen = u.tolist(), affinity.tolist(), experts.tolist()

    def apply(matrix):
        return [sum(w * x for w, x in zip(row, u)) for row in matrix.tolist()]

    y = apply(shared)
    for e in chosen:
        g = scale * s[e] / sum(s[i] for i in chosen)
        y = [a + g * r for a, r in zip(y, apply(routed[e]))]
    return torch.tensor(y)


def choose_experts(affinity, bias, n_group, topk_group, K):
    """Rank the groups by their two best, then the experts of those kept, by sorting lists."""
    choice = [s + b for s, b in zip(affinity.tolist(), bias.tolist())]
    size = len(choice) // n_group
    members = [list(range(g * size, (g + 1) * size)) for g in range(n_group)]
    members.sort(key=lambda group: -sum(sorted((choice[e] for e in group), reverse=True)[:2]))
    allowed = [e for group in members[:topk_group] for e in group]
    chosen = sorted(allowed, key=lambda e: -choice[e])[:K]
    return torch.tensor([float(e in chosen) for e in range(len(choice))])


# 05: who keeps the experts busy?

def max_violation(load):
    """2408.15664, eq. 4, a row for each layer."""
    rows = []
    for row in load.tolist():
        mean = sum(row) / len(row)
        rows.append((max(row) - mean) / mean)
    return torch.tensor(rows, dtype=torch.float64)


def worst_violation(routed, chosen):
    """N tokens all at the same K of E experts: N each, where the mean is N K / E."""
    return 1 / (chosen / routed) - 1


def bias_step(bias, load, gamma):
    """2408.15664, algorithm 1, by cases."""
    mean = sum(load.tolist()) / len(load)
    moved = []
    for b, count in zip(bias.tolist(), load.tolist(), strict=True):
        if count > mean:
            b -= gamma
        elif count < mean:
            b += gamma
        moved.append(b)
    return torch.tensor(moved, dtype=torch.float64)


def sequence_balance(affinity, chosen):
    """Eq. 17-20 without alpha, for one sequence: affinity (T, E), `chosen` experts a token."""
    T, E = affinity.shape
    counts, shares = [0] * E, [0.0] * E
    for row in affinity.tolist():
        for expert in sorted(range(E), key=lambda i: -row[i])[:chosen]:
            counts[expert] += 1
        for expert in range(E):
            shares[expert] += row[expert] / sum(row) / T
    return sum(counts[i] * E / (chosen * T) * shares[i] for i in range(E))


def update_once(bias, micro_loads, gamma):
    """One step by the load of all micro-batches together; micro_loads (M, E)."""
    whole = [sum(column) for column in zip(*micro_loads.tolist(), strict=True)]
    return bias_step(bias, torch.tensor(whole), gamma)


def biased_gates(affinity, bias, chosen):
    """Eq. 13-16 for one token: {expert: weight}. The bias chooses, the affinity weighs."""
    s, b = affinity.tolist(), bias.tolist()
    best = sorted(range(len(s)), key=lambda i: -(s[i] + b[i]))[:chosen]
    return {i: s[i] / sum(s[j] for j in best) for i in best}


# 06_can_it_think_two_tokens_ahead

def joined_tokens(T, k):
    """Position i of depth k joins token i+k and guesses token i+k+1 -> (T-k, 2)."""
    return torch.tensor([[i + k, i + k + 1] for i in range(T - k)])


def tokens_per_step(acceptance):
    """Mean over all ways a step can end: n drafts stand, the next does not, n + 1 tokens."""
    rates, mean, reached = acceptance.tolist(), 0.0, 1.0
    for stood, rate in enumerate(rates):
        mean += reached * (1 - rate) * (stood + 1)
        reached *= rate
    return torch.tensor(mean + reached * (len(rates) + 1), dtype=torch.float64)


def mtp_loss(logits, tokens, weight):
    """Eq. 24: -log p of each target over T; eq. 25: lambda times the mean over depths."""
    T, total = len(tokens) - 1, 0.0
    for k, rows in enumerate(logits, start=1):
        for i, row in enumerate(rows.tolist()):
            total -= row[int(tokens[i + k + 1])] - math.log(sum(math.exp(z) for z in row))
    return torch.tensor(weight / len(logits) * total / T, dtype=torch.float64)


def verify_greedy(drafts, logits):
    """Read on while the draft is the largest; the first other verdict, or the last, ends it."""
    new = []
    for place, row in enumerate(logits.tolist()):
        new.append(max(range(len(row)), key=row.__getitem__))
        if place == len(drafts) or new[-1] != int(drafts[place]):
            break
    return torch.tensor(new)


def replacement(p, q):
    """Words that q drafts too rarely, in proportion to what is missing -> (V,)."""
    missing = [max(wanted - drafted, 0.0) for wanted, drafted in zip(p.tolist(), q.tolist())]
    return torch.tensor([part / math.fsum(missing) for part in missing], dtype=torch.float64)


def outcome(p, q):
    """Chance of each word after the rule: drafted and kept, or another draft lost -> (V,)."""
    kept, lost = [], 0.0
    for wanted, drafted in zip(p.tolist(), q.tolist()):
        rate = min(1.0, wanted / drafted)
        kept.append(drafted * rate)
        lost += drafted * (1 - rate)
    new = replacement(p, q).tolist()
    return torch.tensor([stays + lost * comes for stays, comes in zip(kept, new)],
                        dtype=torch.float64)
