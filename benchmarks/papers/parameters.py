"""Numbers of parameters of the models at their published sizes, beside the published numbers.

python -m benchmarks.papers.parameters          # writes results/parameters.json and .md
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import auto_cli

from benchmarks import tables
from benchmarks.papers.images import SIZES
from benchmarks.papers.kept import RESULTS
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import ROWS


def counts() -> dict[str, int]:
    """Return the number of parameters of every model of the tables."""
    shapes = {row.run.model: SIZES[row.run.data] for row in ROWS}
    return {name: parameters_of(name, shape) for name, shape in shapes.items()}


def parameters_of(model: str, image_shape: tuple[int, int, int]) -> int:
    """Return the number of parameters of a model at its published size.

    Args:
        model: key of ``MODELS``.
        image_shape: (C, H, W).
    """
    flow = MODELS[model].at("paper", image_shape, 256)
    return sum(parameter.numel() for parameter in flow.parameters())


def main(out: str = str(RESULTS)):
    """Count the parameters of every model, at its published size.

    Args:
        out: folder for parameters.json and parameters.md.
    """
    path = Path(out, "parameters.json")
    tables.write("parameters", path, counts())
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
