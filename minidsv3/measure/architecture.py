"""Draw the architecture as SVG from a config, so that its numbers are always those of the config.

On the left is the whole model, bottom to top as in the report's figures 2 and 3: embedding, blocks,
norm, head, and beside them the MTP module, which shares embedding and head. In the middle is
Multi-head Latent Attention (eq. 1-11), on the right a mixture of experts (eq. 12-16). Colours have
one meaning everywhere: blue is MLA, orange the experts, green MTP, purple what is cached. The
residual sum around every MLA, SwiGLU and MoE, and the RMSNorm in front of it, are not drawn.

    python -m minidsv3.measure.architecture v3-671b architecture.svg
"""

import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from ..command import Parser, UserError, answer
from ..config import ModelConfig
from ..files import write_text

WIDTH, HEIGHT = 1000, 720                  # text of size 14 is larger than 12 at a width of 900
INK, DASHED = "#3C4148", "5 4"
# A paint is (colour of the area, colour of the edge, dashes of the edge).
BLUE, ORANGE = ("#D9EAF6", "#0072B2", ""), ("#FBE9CB", "#B34E00", "")
GREEN, PURPLE = ("#D5EFE6", "#00795A", ""), ("#F7E4EE", "#A3467A", DASHED)
GREY, WHITE, FRAME = ("#EEF0F2", INK, ""), ("#FFFFFF", INK, ""), ("#F8F9FA", "#9AA0A8", "")


class Drawing:
    """SVG elements in the order of painting; y grows downwards, x, y is a box's upper left."""

    def __init__(self):
        self.elements = []

    def text(self, x, y, words, colour="#1A1A1A", size=14, anchor="middle", bold=False):
        """One line of text with its baseline at y."""
        weight = ' font-weight="bold"' if bold else ""
        self.elements.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" '
                             f'text-anchor="{anchor}"{weight}>{escape(words)}</text>')

    def box(self, x, y, width, height, paint, *lines, radius=6):
        """A rounded box with text in its middle; if there are several lines, the first is bold."""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
            f'fill="{paint[0]}" stroke="{paint[1]}" stroke-width="1.5" '
            f'stroke-dasharray="{paint[2] or "none"}"/>')
        for i, line in enumerate(lines):
            baseline = y + height / 2 + 5 + 18 * i - 9 * (len(lines) - 1)
            self.text(x + width / 2, baseline, line, bold=len(lines) > 1 and i == 0)

    def arrow(self, *points, colour=INK):
        """A line through the points that ends upwards in an arrow head."""
        path, (x, y) = " ".join(f"{x:g},{y:g}" for x, y in points), points[-1]
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                             f'stroke-width="1.6"/><path d="M{x:g} {y:g} l-4.5 8 h9 z" '
                             f'fill="{colour}"/>')

    def column(self, x, width, start, *boxes, colour=INK):
        """Boxes (y, height, paint, lines...) from bottom to top, with arrows from start upwards."""
        for y, height, paint, *lines in boxes:
            if start is not None:
                self.arrow((x + width / 2, start), (x + width / 2, y + height + 2), colour=colour)
            self.box(x, y, width, height, paint, *lines)
            start = y

    def output(self, x, start, words, colour=INK):
        """An arrow to the top edge, and the name of what leaves there."""
        self.arrow((x, start), (x, 92), colour=colour)
        self.text(x, 82, words)

    def panel(self, x, width, title, colour):
        """The frame of one of the three parts."""
        self.box(x, 8, width, HEIGHT - 16, ("#FFFFFF", "#D4D7DB", ""), radius=10)
        self.box(x, 8, width, 38, (colour, colour, ""), radius=10)
        self.text(x + width / 2, 33, title, colour="#FFFFFF", size=17, bold=True)


def architecture_svg(config):
    """The picture of the model that a config describes, as the text of an SVG file."""
    d = Drawing()
    draw_stack(d, config)
    draw_mla(d, config)
    draw_moe(d, config)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif">\n'
            "<title>The architecture: stack and MTP, latent attention, mixture of experts</title>\n"
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#FFFFFF"/>\n'
            + "\n".join(d.elements) + "\n</svg>\n")


def draw_stack(d, c):
    """Left: the whole model, with the MTP module beside it."""
    d.panel(8, 286, "The whole model", INK)
    x, w = (20, 138) if c.num_nextn_predict_layers else (66, 170)
    middle, top = x + w / 2, 604
    dense = min(c.first_k_dense_replace, c.num_hidden_layers)
    swiglu = (WHITE, "SwiGLU", f"{c.intermediate_size:,} wide")

    d.text(middle, 696, "tokens 1 … t")
    d.column(x, w, 680, (top, 46, GREY, "embedding", f"{c.vocab_size:,} × {c.hidden_size:,}"))
    for count, kind, feed_forward in [(dense, "dense", swiglu),
                                      (c.num_hidden_layers - dense, "MoE", (ORANGE, "MoE"))]:
        if count:
            d.column(x, w, top, (top - 170, 148, FRAME))
            d.column(x + 12, w - 24, None, (top - 68, 34, BLUE, "MLA"),
                     (top - 130, 46, *feed_forward))
            d.text(middle, top - 147, f"{count} {kind} block" + "s" * (count > 1), bold=True)
            top -= 170
    head = "head, tied" if getattr(c, "tie_word_embeddings", False) else "head"
    d.column(x, w, top, (194, 32, WHITE, "RMSNorm"),
             (112, 46, GREY, head, f"{c.hidden_size:,} × {c.vocab_size:,}"))
    d.output(middle, 112, "token t+1")
    if c.num_nextn_predict_layers:
        draw_mtp(d, c, x + w)


def draw_mtp(d, c, stack):
    """The MTP module (eq. 21-23); stack is the x of the main model's right edge."""
    count, x, w, green = c.num_nextn_predict_layers, 184, 102, GREEN[1]
    middle = x + w / 2
    d.column(x, w, None, (256, 292, ("#F4FBF8", green, "")),
             (112, 46, (*GREY[:2], DASHED), "head", "the same"), colour=green)
    d.text(middle, 279, "MTP module" if count == 1 else f"{count} × MTP", colour=green, bold=True)
    d.column(x + 8, w - 16, None, (496, 32, WHITE, "2 RMSNorm"),
             (414, 66, GREEN, "eh_proj", f"{2 * c.hidden_size:,}", f"→ {c.hidden_size:,}"),
             (366, 32, BLUE, "MLA"))
    d.column(x + 8, w - 16, None, (328, 32, ORANGE, "MoE"))
    d.column(x + 8, w - 16, None, (290, 32, WHITE, "RMSNorm"))
    d.arrow((stack, 627), (middle + 24, 627), (middle + 24, 530), colour=green)
    d.text(middle, 650, "embedding", colour=green)
    d.text(middle, 668, "of token t+1", colour=green)
    d.arrow((stack, 210), (171, 210), (171, 572), (middle - 24, 572), (middle - 24, 530),
            colour=green)
    d.output(middle, 112, "token t+2" if count == 1 else f"t+2 … t+{count + 1}", colour=green)


def draw_mla(d, c):
    """Middle: from left to right the queries, the latent of keys and values, the rotary key."""
    d.panel(302, 378, "Multi-head Latent Attention", BLUE[1])
    nope, rope, value, heads = (c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim,
                                c.num_attention_heads)
    d.box(314, 650, 354, 32, GREY, f"hidden state, {c.hidden_size:,}")
    latent = [(590, 30, WHITE, "q_a_proj"), (530, 30, WHITE, "RMSNorm"),
              (444, 46, BLUE, "c_q", f"{c.q_lora_rank:,}")] if c.q_lora_rank else []
    d.column(314, 120, 650, *latent, (336, 30, WHITE, "q_b_proj" if latent else "q_proj"))

    d.column(446, 222, 650, (590, 30, WHITE, "kv_a_proj_with_mqa"))
    d.box(440, 386, 234, 112, PURPLE)
    d.column(446, 112, 590, (530, 30, WHITE, "RMSNorm"),
             (444, 46, BLUE, "c_kv", f"{c.kv_lora_rank:,}"))
    d.column(570, 98, 590, (530, 30, WHITE, "RoPE"), (444, 46, BLUE, "k_rope", f"{rope:,}"))
    d.text(559, 412, f"cached: {c.kv_lora_rank + rope:,} numbers", colour=PURPLE[1], bold=True)
    d.text(559, 431, "per token and layer", colour=PURPLE[1])
    d.arrow((462, 444), (462, 368))
    d.box(446, 336, 112, 30, WHITE, "kv_b_proj")
    d.arrow((656, 444), (656, 214))
    d.text(646, 285, "one key for", anchor="end")
    d.text(646, 303, "all heads", anchor="end")

    d.column(376, 58, 336, (298, 26, WHITE, "RoPE"))
    for x, w, start, name, size in [(314, 58, 336, "q_nope", nope), (376, 58, 298, "q_rope", rope),
                                    (446, 54, 336, "k_nope", nope), (504, 54, 336, "v", value)]:
        d.column(x, w, start, (240, 44, BLUE))
        d.text(x + w / 2, 258, name)
        d.text(x + w / 2, 276, f"{size:,}")
        d.arrow((x + w / 2, 240), (x + w / 2, 214))
    d.box(314, 164, 354, 48, BLUE, f"attention in {heads:,} heads",
          f"softmax({scaled_score(c)}) v")
    d.column(391, 200, 164, (112, 30, WHITE, f"o_proj, {heads * value:,} → {c.hidden_size:,}"))
    d.output(491, 112, f"output, {c.hidden_size:,}")


def scaled_score(c):
    """How a score is scaled: by the root of the width, and with YaRN by its temperature too."""
    width = c.qk_nope_head_dim + c.qk_rope_head_dim
    yarn = getattr(c, "rope_scaling", None)
    if yarn is None or not yarn.mscale_all_dim:
        return f"q · k / √{width}"
    temperature = 0.1 * yarn.mscale_all_dim * math.log(max(yarn.factor, 1)) + 1
    return f"{temperature**2 / math.sqrt(width):.4f} q · k"


def draw_moe(d, c):
    """Right: the router with its choice among the routed experts, and beside it the shared ones."""
    d.panel(688, 304, "Mixture of Experts", ORANGE[1])
    experts = c.n_routed_experts
    groups, kept = getattr(c, "n_group", 1), getattr(c, "topk_group", 1)
    limit = [(418, 30, WHITE, f"best {kept} of {groups} groups")] if groups > 1 else []
    d.box(700, 650, 280, 32, GREY, f"hidden state, {c.hidden_size:,}")
    d.column(700, 162, 650, (598, 30, WHITE, "gate"),
             (532, 46, WHITE, "sigmoid", f"{experts:,} affinities s"),
             (466, 46, (*WHITE[:2], DASHED), "+ bias", "only for choosing"), *limit,
             (370, 30, WHITE, f"top {c.num_experts_per_tok} of {experts:,}"),
             (190, 162, ("#FFFAF0", ORANGE[1], "")))
    d.text(781, 210, f"{experts:,} routed experts", bold=True)
    d.text(781, 228, f"each {c.moe_intermediate_size:,} wide")
    draw_experts(d, experts, c.num_experts_per_tok, groups, kept)
    d.arrow((781, 190), (781, 174))
    d.arrow((862, 555), (874, 555), (874, 174))
    scale = f"sum {getattr(c, 'routed_scaling_factor', 1.0):g}"
    for i, line in enumerate(["weights:", "chosen s,", "no bias,", scale]):
        d.text(882, 452 + 18 * i, line, anchor="start")
    if c.n_shared_experts:
        d.arrow((968, 650), (968, 354))
        d.box(886, 252, 94, 100, ORANGE, f"{c.n_shared_experts} shared",
              f"{c.moe_intermediate_size:,} wide", "for every", "token")
        d.arrow((933, 252), (933, 174))
    d.box(700, 140, 280, 32, ORANGE, "weighted sum" + " + shared" * bool(c.n_shared_experts))
    d.output(840, 140, f"output, {c.hidden_size:,}")


def draw_experts(d, experts, chosen, groups, kept):
    """A cell for every routed expert, in groups; the cells of one possible choice are filled."""
    size, each = experts // groups, -(-chosen // kept)   # experts per group; chosen per kept group
    columns = min(16, size)
    rows = -(-size // columns)
    width, height = 146 / columns, min(30, (106 - 4 * (groups - 1)) / (rows * groups))
    apart = max(1, size // each - 3)
    picks = {(j % kept * groups // kept, (j // kept * apart + 5 * (j % kept) + 2) % size)
             for j in range(chosen)}
    for expert in range(experts):
        group, place = divmod(expert, size)
        x = 708 + place % columns * width
        y = 239 + 4 * group + (group * rows + place // columns) * height
        colour = ORANGE[1] if (group, place) in picks else "#F2D6A2"
        d.elements.append(f'<path d="M{x:.1f} {y:.1f} h{width - 1.5:.1f} v{height - 1.5:.1f} '
                          f'h{1.5 - width:.1f} z" fill="{colour}"/>')


def run(arguments):
    """Write the picture -> exit code."""
    parser = Parser(description="Draw the architecture of a preset as SVG.")
    parser.add_argument("preset", help="name of a preset of ModelConfig, for instance v3-671b")
    parser.add_argument("out", type=Path, help="SVG file to write; an existing one is replaced")
    options = parser.parse_args(arguments)
    if options.out.is_dir() or not options.out.name:
        raise UserError(f"{options.out} is a folder; name the SVG file to write.")
    if not options.out.parent.is_dir():
        raise UserError(f"{options.out.parent} does not exist; make it, or name another folder.")
    svg = architecture_svg(ModelConfig.preset(options.preset))
    write_text(options.out, svg)
    print(f"wrote {options.out}")


def main(arguments=None):
    """python -m minidsv3.measure.architecture PRESET OUT.svg"""
    return answer(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
