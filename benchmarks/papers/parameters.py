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
from benchmarks.sizes import parameters_of


def main(out: str = str(RESULTS)):
    """Count the parameters of every model, at its published size.

    Args:
        out: folder for parameters.json and parameters.md.
    """
    shapes = {row.run.model: SIZES[row.run.data] for row in ROWS}
    found = {
        name: parameters_of(MODELS[name].at("paper", shape, 256)) for name, shape in shapes.items()
    }
    tables.write("parameters", Path(out, "parameters.json"), found)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
