"""Numbers of parameters of the models at their published sizes, beside the published numbers.

python -m benchmarks.papers.parameters          # writes results/parameters.json and .md
"""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.papers.images import SIZES
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import ROWS

RESULTS = Path(__file__).parent / "results"


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


def table(found: dict[str, int]) -> str:
    """Return the numbers as Markdown."""
    lines = [
        "| model | images | tables | parameters | published | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, count in found.items():
        model = MODELS[name]
        rows = [row for row in ROWS if row.run.model == name]
        images = ", ".join(dict.fromkeys(row.run.data for row in rows))
        tables = ", ".join(dict.fromkeys(_named(row.table) for row in rows))
        published = difference = ""
        if model.parameters is not None:
            published = f"{model.parameters:.4g}M"
            difference = f"{100 * (count / (1e6 * model.parameters) - 1):+.2f}%"
        cells = [model.label, images, tables, f"{count:,}", published, difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(out: str = str(RESULTS)):
    """Count the parameters of every model, at its published size.

    Args:
        out: folder for parameters.json and parameters.md.
    """
    found = counts()
    Path(out).mkdir(parents=True, exist_ok=True)
    Path(out, "parameters.json").write_text(json.dumps(found, indent=1) + "\n")
    Path(out, "parameters.md").write_text(table(found))
    print(table(found))


def _named(key: str) -> str:
    paper, number = key.split("-")
    return f"{'MixerFlow' if paper == 'mixerflow' else 'DenseFlow'} {number}"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
