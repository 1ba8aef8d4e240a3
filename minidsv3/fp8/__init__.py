"""Computing and storing in FP8 (report, section 3.3).

    quantize        numbers to FP8 and back, with one scale per tile or block
    linear          the three products of a linear layer, and `convert` for a whole model
    tensor_cores    the same products on a GPU that has them
    accumulate      sums in few bits, as a tensor core adds
    cache           the latent cache in FP8

All of it attaches to a finished model from outside: `model/` knows nothing of FP8.
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
