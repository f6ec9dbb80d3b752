"""``python -m nflows_mixer.evaluation``: figures and pictures of trained weights."""

from nflows_mixer.evaluation.command import main

if __name__ == "__main__":
    main(prog="python -m nflows_mixer.evaluation")
