"""Flows of zuko as nflows transforms, and transforms of nflows inside zuko.

Importing this package imports zuko, which changes torch.distributions for the whole process.
"""

from nflows_mixer.adapters.zuko.from_zuko import from_zuko
from nflows_mixer.adapters.zuko.to_zuko import to_zuko

__all__ = ["from_zuko", "to_zuko"]
