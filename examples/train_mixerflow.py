"""Train a MixerFlow on images, with any number of devices; evaluate it; draw samples.

    python examples/train_mixerflow.py                        # handwritten digits, on a laptop
    python examples/train_mixerflow.py --config cifar10 --trainer.devices 8

This is the command ``nflows-mixer train``. Writes weights, figures and pictures to --out, and
prints bits per dimension on held-out images beside those of simple models of the same split.
--help lists all arguments; --config takes them from a file, or a preset by its name; the same
command with --resume goes on with a run that was killed.
"""

import sys

from nflows_mixer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
