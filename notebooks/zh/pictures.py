"""Pictures with Chinese words if a font here has their signs, with English words if none has."""

from matplotlib import font_manager

from minidsv3.measure import plots

FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC",
         "Hiragino Sans GB", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei",
         "Arial Unicode MS")
installed = [font for font in FONTS if font in font_manager.get_font_names()]

if installed:
    plots.LOOK["font.family"] = [plots.LOOK["font.family"], *installed]
    from .zh import *  # noqa: F403
else:
    from .en import *  # noqa: F403
