"""``python -m nflows_mixer.training``: the command line of a training run."""

from nflows_mixer.training.command import main

if __name__ == "__main__":
    main(prog="python -m nflows_mixer.training")
