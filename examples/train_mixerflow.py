"""Train a MixerFlow on images, with any number of devices; evaluate it; draw samples.

    python examples/train_mixerflow.py                        # handwritten digits, on a laptop
    python examples/train_mixerflow.py --data cifar10 --preset cifar10 --devices 8

Writes weights, figures and pictures to --out, and prints bits per dimension on held-out images
beside those of simple models of the same split. --help lists all arguments; --config FILE.yaml
takes them from a file; the same command with --resume goes on with a run that was killed.
"""

from nflows_mixer.training.command import main

if __name__ == "__main__":
    main()
