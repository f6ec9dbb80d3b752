"""``python -m nflows_mixer``: the command ``nflows-mixer``."""

from nflows_mixer.cli import main

if __name__ == "__main__":
    main()
