"""DeepSeek-V3 as plain loops: one token, one head and one expert at a time.

    main = main_logits(tensors, config, tokens)      one sequence [t_0, t_1, ...] -> (T, V)
    mtp  = mtp_logits(tensors, config, tokens)       predicts t_2, t_3, ...      -> (T-1, V)

It follows the report's equations and the released names alone, and uses no code of the package. A
token is a float64 vector. `w` holds the weights of one layer by their released names.
"""

import math

import torch


def main_logits(tensors, config, tokens, tables=torch.float32):
    """eq. 1-16 for every layer, then the final norm and the head."""
    return on_head(tensors, main_states(tensors, config, tokens, tables))


def mtp_logits(tensors, config, tokens, tables=torch.float32):
    """eq. 21-23 at depth 1: the state of t_i and the token t_{i+1} predict t_{i+2}."""
    states = main_states(tensors, config, tokens, tables)
    w, eps, xs = layer(tensors, config.num_hidden_layers), config.rms_norm_eps, []
    embedding = tensors["model.embed_tokens.weight"].double()
    for h, token in zip(states[:-1], tokens[1:]):
        e = norm(embedding[token], w["enorm.weight"], eps)
        h = norm(h, w["hnorm.weight"], eps)
        xs.append(w["eh_proj.weight"] @ torch.cat([e, h]))    # the released order: embedding first
    xs = block(w, config, xs, rotary_table(config, len(xs), tables))
    return on_head(tensors, [norm(x, w["shared_head.norm.weight"], eps) for x in xs])


def main_states(tensors, config, tokens, tables):
    """The state of every token after the final norm."""
    xs = [tensors["model.embed_tokens.weight"][token].double() for token in tokens]
    for i in range(config.num_hidden_layers):
        xs = block(layer(tensors, i), config, xs, rotary_table(config, len(xs), tables))
    return [norm(x, tensors["model.norm.weight"].double(), config.rms_norm_eps) for x in xs]


def layer(tensors, i):
    prefix = f"model.layers.{i}."
    return {n.removeprefix(prefix): t.double() for n, t in tensors.items() if n.startswith(prefix)}


def on_head(tensors, states):
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).double()
    return torch.stack([head @ h for h in states])


def block(w, config, xs, table):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""
    eps = config.rms_norm_eps
    normed = [norm(x, w["input_layernorm.weight"], eps) for x in xs]
    xs = [x + a for x, a in zip(xs, attention(w, config, normed, table))]
    normed = [norm(x, w["post_attention_layernorm.weight"], eps) for x in xs]
    sparse = "mlp.gate.weight" in w
    return [x + (experts(w, config, u) if sparse else swiglu(w, "mlp", u))
            for x, u in zip(xs, normed)]


def norm(x, gain, eps):
    return gain * x / math.sqrt(x @ x / len(x) + eps)


def swiglu(w, name, x):
    gate, up = w[f"{name}.gate_proj.weight"] @ x, w[f"{name}.up_proj.weight"] @ x
    return w[f"{name}.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)


def attention(w, config, hs, table):
    """eq. 1-11. Of each token j only c_kv[j] and k_rope[j] are kept."""
    H, nope = config.num_attention_heads, config.qk_nope_head_dim
    # In kv_b_proj the rows are [W_UK; W_UV] head by head.
    up = [(m[:nope], m[nope:]) for m in w["self_attn.kv_b_proj.weight"].chunk(H)]
    c_kv, k_rope, outputs = [], [], []
    for t, h in enumerate(hs):
        joint = w["self_attn.kv_a_proj_with_mqa.weight"] @ h
        latent, key = joint[:config.kv_lora_rank], joint[config.kv_lora_rank:]
        c_kv.append(norm(latent, w["self_attn.kv_a_layernorm.weight"], 1e-6))      # eq. 1
        k_rope.append(rotate(key, table[t]))                                       # eq. 3
        of_heads = []
        for (W_UK, W_UV), q in zip(up, queries(w, config, h).chunk(H)):
            q_nope, q_rope = q[:nope], rotate(q[nope:], table[t])
            scores = [q_nope @ (W_UK @ c_kv[j]) + q_rope @ k_rope[j] for j in range(t + 1)]
            p = (softmax_scale(config) * torch.stack(scores)).softmax(dim=0)
            of_heads.append(sum(p[j] * (W_UV @ c_kv[j]) for j in range(t + 1)))    # eq. 10
        outputs.append(w["self_attn.o_proj.weight"] @ torch.cat(of_heads))         # eq. 11
    return outputs


def queries(w, config, h):
    if config.q_lora_rank is None:
        return w["self_attn.q_proj.weight"] @ h
    c_q = norm(w["self_attn.q_a_proj.weight"] @ h, w["self_attn.q_a_layernorm.weight"], 1e-6)
    return w["self_attn.q_b_proj.weight"] @ c_q                                    # eq. 6-9


def experts(w, config, u):
    """eq. 12-16 for one token: which experts are chosen, and how much each counts."""
    E, G = config.n_routed_experts, config.n_group
    s = [1 / (1 + math.exp(-logit)) for logit in w["mlp.gate.weight"] @ u]         # eq. 15
    biased = [s_i + b_i.item() for s_i, b_i in zip(s, w["mlp.gate.e_score_correction_bias"])]
    groups = [range(g * E // G, (g + 1) * E // G) for g in range(G)]
    groups.sort(key=lambda group: sum(sorted(biased[i] for i in group)[-2:]))      # their two best
    allowed = [i for group in groups[-config.topk_group:] for i in group]
    chosen = sorted(allowed, key=lambda i: biased[i])[-config.num_experts_per_tok:]  # eq. 16
    total = sum(s[i] for i in chosen) if config.norm_topk_prob else 1.0            # eq. 13
    y = sum(config.routed_scaling_factor * s[i] / total * swiglu(w, f"mlp.experts.{i}", u)
            for i in chosen)
    return y + swiglu(w, "mlp.shared_experts", u) if config.n_shared_experts else y


def rotate(x, angles):
    """Rotate the pair (x[2m], x[2m+1]) by angle m, given as its cosine and sine."""
    turned = []
    for (cos, sin), (a, b) in zip(angles, x.view(-1, 2)):
        turned += [a * cos - b * sin, a * sin + b * cos]
    return torch.stack(turned)


def rotary_table(config, length, dtype):
    """(cos, sin) of each position and pair, (T, Dr/2, 2), with YaRN."""
    # The model is defined with float32 tables, in this order of operations: an error in their last
    # bit is larger than all other errors here.
    yarn, channels = config.rope_scaling, config.qk_rope_head_dim
    power = config.rope_theta ** (torch.arange(0, channels, 2, dtype=dtype) / channels)
    frequency, amplitude = 1 / power, 1.0
    if yarn is not None:
        def pair(turns):                                      # with so many turns in the window
            longest = yarn.original_max_position_embeddings / (2 * math.pi * turns)
            return channels * math.log(longest) / (2 * math.log(config.rope_theta))
        low = max(math.floor(pair(yarn.beta_fast)), 0)
        high = min(math.ceil(pair(yarn.beta_slow)), channels - 1)
        high += 0.001 if low == high else 0
        ramp = ((torch.arange(channels // 2, dtype=dtype) - low) / (high - low)).clamp(0, 1)
        frequency = 1 / (yarn.factor * power) * ramp + frequency * (1 - ramp)
        amplitude = (mscale(yarn, yarn.mscale) / mscale(yarn, yarn.mscale_all_dim)
                     if yarn.mscale and yarn.mscale_all_dim else mscale(yarn, 1.0))
    angle = torch.arange(length, dtype=dtype)[:, None] * frequency
    return torch.stack([angle.cos() * amplitude, angle.sin() * amplitude], dim=-1).double()


def mscale(yarn, weight):
    return 0.1 * weight * math.log(yarn.factor) + 1


def softmax_scale(config):
    yarn, scale = config.rope_scaling, (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    return scale * mscale(yarn, yarn.mscale_all_dim) ** 2 if yarn and yarn.mscale_all_dim else scale
