"""Tell a student whether a function is right: every notebook's exercises end in one call of here.

    check.rms_norm(rms_norm)         open | not yet: what differs, and a hint | passed
    check.guess(question, choices)   asks before an experiment; the answer is the next cell

A checker tries a case small enough to work out by hand, then random ones, against an oracle that
is never our own module: a plain loop in float64 or a formula of the report (`oracles`). None
of them raises, so that an unsolved notebook still runs to its end.
"""

import platform

import matplotlib
import numpy
import torch

from .balance import bias_step as bias_step
from .balance import max_violation as max_violation
from .balance import sequence_balance as sequence_balance
from .balance import update_once as update_once
from .balance import worst_violation as worst_violation
from .cache import absorb_query as absorb_query
from .cache import absorbed_attention as absorbed_attention
from .cache import break_even as break_even
from .cache import cache_bytes_per_token as cache_bytes_per_token
from .cache import keys_of_heads as keys_of_heads
from .eight_bits import block_weights as block_weights
from .eight_bits import e4m3_value as e4m3_value
from .eight_bits import round_bits as round_bits
from .eight_bits import scaled_product as scaled_product
from .eight_bits import tile_scales as tile_scales
from .experts import choose_experts as choose_experts
from .experts import gates as gates
from .experts import group_scores as group_scores
from .experts import moe_output as moe_output
from .experts import visit_share as visit_share
from .memory import decoder_step as decoder_step
from .memory import keys_computed as keys_computed
from .memory import may_see as may_see
from .network import active_parameters as active_parameters
from .network import bits_a_byte as bits_a_byte
from .network import fused_block as fused_block
from .network import rms_norm as rms_norm
from .network import swiglu as swiglu
from .pencil import bill as bill
from .pencil import rates as rates
from .pipeline import one_forward_one_backward as one_forward_one_backward
from .pipeline import peak_alive as peak_alive
from .pipeline import squared_paper as squared_paper
from .position import angles as angles
from .position import frequencies as frequencies
from .position import half_order as half_order
from .position import rotate as rotate
from .position import turns as turns
from .prediction import joined_tokens as joined_tokens
from .prediction import mtp_loss as mtp_loss
from .prediction import replacement as replacement
from .prediction import tokens_per_step as tokens_per_step
from .prediction import verify_greedy as verify_greedy
from .service import pour as pour
from .service import puzzle as puzzle
from .service import replicate as replicate
from .service import slots_of as slots_of
from .service import waits as waits
from .training import adamw_step as adamw_step
from .training import difference_and_error as difference_and_error
from .training import merge_once as merge_once
from .training import orthogonalise as orthogonalise
from .training import part_losses as part_losses
from .travel import combine as combine
from .travel import copies_between_nodes as copies_between_nodes
from .travel import dispatch as dispatch
from .travel import serve as serve
from .verdict import compare as compare
from .verdict import normal as normal
from .window import exact_answers as exact_answers
from .window import haystack as haystack
from .window import sharpened_scale as sharpened_scale
from .window import yarn_frequencies as yarn_frequencies


def machine(minutes):
    """Print what this notebook runs on, and how long it takes there and about."""
    print(f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, "
          f"numpy {numpy.__version__}, matplotlib {matplotlib.__version__}, "
          f"{platform.system()} {platform.machine()}")
    threads = torch.get_num_threads()
    print(f"device cpu, {threads} {'thread' if threads == 1 else 'threads'}; "
          f"about {minutes:g} min on two cores")


def guess(question, choices, mine=None):
    """Ask what an experiment will show, and note the reader's guess; the next cell shows it.

    mine: the number of a choice, from 1. No answer is known here, and nothing is ever raised.
    """
    print(question)
    for number, choice in enumerate(choices, start=1):
        print(f"  {number}  {choice}")
    if mine is None:
        print("Write your number as mine=..., run this cell again, and then the next one.")
    elif isinstance(mine, int) and 1 <= mine <= len(choices):
        print(f"noted: {mine}, {choices[mine - 1]}. Now run the next cell.")
    else:
        print(f"{mine!r} is no choice: write a number from 1 to {len(choices)}.")
