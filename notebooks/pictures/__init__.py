"""Draw the pictures of the notebooks: data in, a figure out, so that cells hold no drawing code.

    pictures.dials(theta, window=64, factor=32)      the figure is the value of the cell's last line

The style is that of the package (`minidsv3/measure/plots.py`). Each notebook has a file here.
"""

from .balance import balancing as balancing
from .balance import collapse as collapse
from .balance import loop_and_brake as loop_and_brake
from .balance import shares as shares
from .block import block as block
from .cache import absorbed_queries as absorbed_queries
from .cache import memory_held as memory_held
from .cache import query_times as query_times
from .cache import spectrum as spectrum
from .cache import step_times as step_times
from .cache import two_routes as two_routes
from .eight_bits import gradient_errors as gradient_errors
from .eight_bits import in_range as in_range
from .eight_bits import loss_errors as loss_errors
from .eight_bits import number_lines as number_lines
from .eight_bits import outlier_errors as outlier_errors
from .eight_bits import sums as sums
from .eight_bits import three_products as three_products
from .experts import loss_added as loss_added
from .experts import missed as missed
from .experts import named as named
from .experts import steps as steps
from .experts import stored_and_activated as stored_and_activated
from .experts import who_goes_where as who_goes_where
from .memory import changes as changes
from .memory import time_and_memory as time_and_memory
from .network import after_each_block as after_each_block
from .network import lens as lens
from .network import stored_and_used as stored_and_used
from .pipeline import bubbles_over_weight as bubbles_over_weight
from .position import clocks as clocks
from .position import distances as distances
from .position import rotated_queries as rotated_queries
from .position import wavelengths as wavelengths
from .prediction import by_certainty as by_certainty
from .prediction import chain as chain
from .prediction import copying as copying
from .prediction import drafted_text as drafted_text
from .prediction import halves as halves
from .prediction import rejected as rejected
from .prediction import speed_up as speed_up
from .prediction import steps_and_time as steps_and_time
from .service import by_kind as by_kind
from .service import one_user as one_user
from .service import queues as queues
from .service import stacks as stacks
from .training import differences as differences
from .training import road as road
from .training import schedules as schedules
from .training import singular_values as singular_values
from .travel import journeys as journeys
from .window import dials as dials
from .window import four_maps as four_maps
from .window import ramp as ramp
from .window import shares_found as shares_found
