"""What a run found, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nflows_mixer._files import replace_file


def write_results(results: Mapping[str, Any], out: str | Path) -> None:
    """Write ``results.json``, and ``results.md`` with the table of it.

    Args:
        results: what ``fit`` returned; ``name`` is that of the flow in the table, and ``notes`` a
            list of sentences below it, if they are there.
        out: folder.

    Example:
        >>> import tempfile
        >>> from nflows_mixer.training.command import main
        >>> quick = ["--model.num_layers=1", "--recipe.steps=0", "--progress=false"]
        >>> results = main([*quick, "--out", tempfile.mkdtemp()])
        digits: ...
        >>> out = Path(tempfile.mkdtemp())
        >>> write_results({**results, "notes": ["An untrained flow."]}, out)
        >>> (out / "results.md").read_text().splitlines()[0]
        '| digits, 397 test images | bits/dim |'
    """
    replace_file(Path(out) / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    replace_file(Path(out) / "results.md", table(results).encode())


def table(results: Mapping[str, Any]) -> str:
    """Return results as Markdown, with what they were made of.

    Args:
        results: what ``fit`` returned, or what is in ``results.json``.

    Example:
        >>> import tempfile
        >>> from nflows_mixer.training.command import main
        >>> quick = ["--model.num_layers=1", "--recipe.steps=0", "--progress=false"]
        >>> results = main([*quick, "--out", tempfile.mkdtemp()])
        digits: ...
        >>> print(table(results).splitlines()[3])
        | uniform, 17 levels | 4.087 |
    """
    part = list(results["bits_per_dim"])[-1]
    rows = {
        results.get("name", "MixerFlow"): results["bits_per_dim"][part],
        **results["yardsticks"],
    }
    named = " ".join(filter(None, [results["data"], results["version"]]))
    if shuffle := results.get("shuffle"):
        named += f", pixels shuffled ({shuffle['mode']})"
    recipe, versions = results["recipe"], results["versions"]
    # Other flows may draw more noise than that.
    pixels_alone = results.get("family", "mixerflow") == "mixerflow"
    one = "one dequantisation\ndraw" if pixels_alone else "one draw of\nthe noise"
    return "\n".join(
        [
            f"| {named}, {results['evaluated_images'][part]:,} {part} images | bits/dim |",
            "|---|---|",
            *(f"| {name} | {bits:.3f} |" for name, bits in rows.items()),
            "",
            *results.get("notes", []),
            f"{results['parameters']:,} parameters, {results['steps']:,} steps of "
            f"{recipe['batch_size']} of {results['train_images']:,} training images ("
            f"{results['evaluated_images']['train']:,} of them have",
            f"{results['bits_per_dim']['train']:.3f} bits/dim), seed {results['seed']}, split "
            f"{results['split_hash']}; {one} for each "
            f"{part} image, the worst {results['worst_image'][part]:.3f}; "
            f"{results['train_seconds']:.0f} s on {results['machine']}, torch {versions['torch']}.",
            "",
        ]
    )
