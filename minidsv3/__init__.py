"""minidsv3: DeepSeek-V3, small enough to read and to train on a laptop."""

from . import device as device  # sets what torch reads when it is loaded, so it comes first
from .config import ModelConfig as ModelConfig
from .model.objective import LossTerms as LossTerms
from .model.transformer import DeepSeekV3 as DeepSeekV3

__version__ = "0.1.0"
