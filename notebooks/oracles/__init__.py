"""What the checkers compare with: each equation written a second time, as plainly as possible.

The functions loop over single numbers, in float64, as the report's equations do. They are slow on
purpose, and independent of the package and of every solution.
"""

from .balance import bias_step as bias_step
from .balance import biased_gates as biased_gates
from .balance import max_violation as max_violation
from .balance import sequence_balance as sequence_balance
from .balance import update_once as update_once
from .balance import worst_violation as worst_violation
from .cache import absorb_query as absorb_query
from .cache import break_even as break_even
from .cache import cache_bytes_per_token as cache_bytes_per_token
from .cache import expanded_attention as expanded_attention
from .cache import keys_of_heads as keys_of_heads
from .eight_bits import block_weights as block_weights
from .eight_bits import e4m3_value as e4m3_value
from .eight_bits import round_bits as round_bits
from .eight_bits import scaled_product as scaled_product
from .eight_bits import through_e4m3 as through_e4m3
from .eight_bits import tile_scales as tile_scales
from .eight_bits import truncated_sum as truncated_sum
from .experts import choose_experts as choose_experts
from .experts import gates as gates
from .experts import group_scores as group_scores
from .experts import moe_layer as moe_layer
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
from .pipeline import fewest_idle_cells as fewest_idle_cells
from .pipeline import idle_cells as idle_cells
from .pipeline import one_forward_one_backward as one_forward_one_backward
from .pipeline import peak_alive as peak_alive
from .position import angles as angles
from .position import frequencies as frequencies
from .position import half_order as half_order
from .position import rotate as rotate
from .position import turns as turns
from .prediction import joined_tokens as joined_tokens
from .prediction import mtp_loss as mtp_loss
from .prediction import outcome as outcome
from .prediction import replacement as replacement
from .prediction import tokens_per_step as tokens_per_step
from .prediction import verify_greedy as verify_greedy
from .service import loads_of_gpus as loads_of_gpus
from .service import pour as pour
from .service import replicate as replicate
from .service import slots_of as slots_of
from .service import waits as waits
from .travel import combine as combine
from .travel import copies_between_nodes as copies_between_nodes
from .travel import copies_table as copies_table
from .travel import dispatch as dispatch
from .travel import serve as serve
from .window import exact_answers as exact_answers
from .window import haystack as haystack
from .window import sharpened_scale as sharpened_scale
from .window import yarn_frequencies as yarn_frequencies
