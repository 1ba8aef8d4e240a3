"""Eight bits: tiles and blocks (quantize), the three products of a linear layer (linear), the same
on a GPU that has them (tensor_cores), sums in few bits (accumulate), the cache (cache).

Report, section 3.3. All of it attaches to a finished model from outside; the model does not know.
"""

from .accumulate import accumulate as accumulate
from .cache import new_cache as new_cache
from .linear import RECIPES as RECIPES
from .linear import convert as convert
from .linear import suspended as suspended
from .quantize import BLOCK as BLOCK
from .quantize import E5M6 as E5M6
from .quantize import TILE as TILE
from .quantize import Format as Format
from .quantize import dequantize as dequantize
from .quantize import quantize as quantize
from .quantize import round_to as round_to
from .quantize import rounded as rounded
