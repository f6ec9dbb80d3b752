"""The variants that are timed, by name."""

from benchmarks.speed.variants.base import Setting, Unavailable, Variant
from benchmarks.speed.variants.glow import nflows_glow, normflows_glow, our_glow
from benchmarks.speed.variants.inside_zuko import inside_zuko
from benchmarks.speed.variants.mixer import MIXER_VARIANTS
from benchmarks.speed.variants.stock import stock_nflows

VARIANTS = {
    **MIXER_VARIANTS,
    "stock nflows parts": stock_nflows,
    "inside zuko": inside_zuko,
    "our Glow": our_glow,
    "Glow of nflows": nflows_glow,
    "Glow of normflows": normflows_glow,
}
"""Name -> (setting -> variant)."""

__all__ = ["VARIANTS", "Setting", "Unavailable", "Variant"]
