"""The words of a command line, before its parser is built."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nflows_mixer._checks import mismatch

FLAGS = {"--resume", "--overwrite", "--conditional", "--progress", "--compile", "--recipe.flip"}
"""What may stand without a value."""


def chosen_before(argv: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """Return preset, data and family of a command line or its YAML file: defaults depend on them.

    Args:
        argv: the words.

    Raises:
        ValueError: if the file is no YAML of names with values.

    Example:
        >>> chosen_before(["--data", "mnist", "--preset=mnist", "--seed", "1"])
        ('mnist', 'mnist', None)
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--data", "--family", "--config"):
        first.add_argument(name)
    known, _ = first.parse_known_args(argv)
    config = _read(known.config)
    preset, data, family = (
        getattr(known, name) or config.get(name) for name in ("preset", "data", "family")
    )
    return preset, data, family


def model_names(argv: Sequence[str]) -> list[str]:
    """Return the names of the model's arguments that a command line or its YAML file gives.

    Args:
        argv: the words, spelled as ``spelled`` does.

    Raises:
        ValueError: if the file is no YAML of names with values.

    Example:
        >>> model_names(["--model.num_layers=3", "--seed=1", "--model.units", "[2, 1]"])
        ['num_layers', 'units']
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, words = first.parse_known_args(argv)
    model = _read(known.config).get("model")
    given = [word.partition("=")[0] for word in words if word.startswith("--model.")]
    names = [name.removeprefix("--model.") for name in given]
    return [*(model if isinstance(model, dict) else ()), *names]


def _read(path: str | None) -> dict[str, Any]:
    """What the file says, if there is one."""
    if path is None:
        return {}
    try:
        config = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise mismatch(path, "YAML", f"{error}", "look at that line") from None
    if not isinstance(config, dict):
        got = type(config).__name__
        raise mismatch(path, "YAML of names with values", got, "write name: value")
    return config


def spelled(word: str) -> str:
    """Take ``--num-nodes`` for ``--num_nodes``.

    Args:
        word: one of the command line.

    Example:
        >>> spelled("--model.patch-size=2-3")
        '--model.patch_size=2-3'
    """
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def with_values(words: Sequence[str]) -> list[str]:
    """Take ``--resume`` for ``--resume true``.

    Args:
        words: of the command line, spelled as ``spelled`` does.

    Example:
        >>> with_values(["--resume", "--compile", "false"])
        ['--resume=true', '--compile', 'false']
    """
    bare = [
        word in FLAGS and (i + 1 == len(words) or words[i + 1].startswith("--"))
        for i, word in enumerate(words)
    ]
    return [f"{word}=true" if alone else word for word, alone in zip(words, bare)]
