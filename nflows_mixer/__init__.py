"""MixerFlow for nflows: normalising flows on images, built from any flow on rows.

``nflows_mixer.flows`` holds ready models, ``nflows_mixer.transforms`` their parts (each an
``nflows.transforms.Transform``), ``nflows_mixer.distributions`` the bases, ``nflows_mixer.nn`` the
conditioners and ``nflows_mixer.likelihood`` the bits per dimension.
"""

import nflows_mixer.adapters  # noqa: F401  (which makes zuko's and normflows' flows known)

__version__ = "0.1.0"
