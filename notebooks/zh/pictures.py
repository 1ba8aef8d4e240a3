"""Pictures with Chinese words if a font here has their signs, with English words if none has."""

import logging
from contextlib import suppress

from matplotlib import font_manager

from minidsv3.measure import plots

FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC",
         "Hiragino Sans GB", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei",
         "Arial Unicode MS")

listed = {font.fname for font in font_manager.fontManager.ttflist}      # may be older than a font
for path in sorted(set(font_manager.findSystemFonts()) - listed):
    with suppress(OSError, RuntimeError):                               # a file that is no font
        font_manager.fontManager.addfont(path)
installed = [font for font in FONTS if font in font_manager.get_font_names()]

if installed:
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)    # some have no bold
    plots.LOOK["font.family"] = [plots.LOOK["font.family"], *installed]
    from .zh import *  # noqa: F403
else:
    from .en import *  # noqa: F403
