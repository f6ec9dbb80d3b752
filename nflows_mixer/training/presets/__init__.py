"""Configurations that ship with the package: what is trained on what, and how long, as YAML."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """Names of the configurations.

    Example:
        >>> "cifar10" in preset_names()
        True
    """
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def preset_file(name: str) -> str:
    """Return the path of a configuration that ships, or else the path that was given.

    Args:
        name: of a preset, or a path.

    Example:
        >>> Path(preset_file("cifar10")).name, preset_file("runs/mine.yaml")
        ('cifar10.yaml', 'runs/mine.yaml')
    """
    return str(FOLDER / f"{name}.yaml") if name in preset_names() else name
