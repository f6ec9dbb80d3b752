"""README.md of the benchmarks: how they are run, and a row for each claim."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.denseflow.rows import ROWS as ABLATED
from benchmarks.denseflow.table import TABLE, by_row
from benchmarks.papers.budgets import BUDGETS
from benchmarks.papers.claims import Comparison
from benchmarks.papers.kept import (
    DASH,
    DECIMALS,
    ONE_SEED,
    Column,
    Kept,
    columns,
    command,
    expression_of,
    label_of,
    markdown,
    published_of,
    tally,
    text_of,
)
from benchmarks.papers.rows import FIGURES, TABLES, Row

BENCHMARKS = Path(__file__).parents[1]
FILES = "--data cifar10_train.npz --test cifar10_test.npz"
ABLATION = BENCHMARKS / "denseflow/results/ablation-cifar-10.json"
"""DenseFlow's Table 4 scaled down, which has a command of its own."""
ABLATE = f"python -m benchmarks.denseflow.ablation --name CIFAR-10 {FILES}"
NOT_RUN = "not run"
VERDICTS = ("undecided", "the other way", "not finite", ONE_SEED)
"""What may become of a claim, but for "as published"."""
MEASUREMENTS = {
    "parameters of the models, beside the published numbers": (
        "python -m benchmarks.papers.parameters",
        "papers/results/parameters*",
    ),
    "time of a training step of the scaled-down models": (
        "python -m benchmarks.papers.step_time",
        "papers/results/step-times*",
    ),
    "speed of training, log-likelihoods and sampling, beside the matrix products alone": (
        "python -m benchmarks.speed.measure",
        "speed/results/speed-*",
    ),
    "memory of a training step, by depth": (
        "python -m benchmarks.speed.memory",
        "speed/results/memory-*",
    ),
    "inverses of masked autoregressive flows": (
        "python -m benchmarks.speed.maf",
        "speed/results/maf-*",
    ),
    "exactness of constant memory and of bfloat16": (
        f"python -m benchmarks.speed.exactness {FILES}",
        "speed/results/exactness-*",
    ),
    "cost by image size": ("python -m benchmarks.scaling.measure", "scaling/[rs]*"),
    "bits/dim of structured linear blocks": (
        f"python -m benchmarks.scaling.likelihood {FILES}",
        "scaling/likelihood*",
    ),
    "loading images": ("python -m benchmarks.loading.measure", "loading/results*"),
    "trust: round trips, log-determinants, integrals": (
        "python -m benchmarks.trust.table",
        "../docs/trust*",
    ),
    "compatibility with layers of nflows, zuko and normflows": (
        "python -m benchmarks.compatibility.table",
        "../docs/compatibility*",
    ),
    "cost of DenseFlow, beside its convolutions alone": (
        "python -m benchmarks.denseflow.cost",
        "denseflow/results/cost-*",
    ),
    "ablation of DenseFlow, scaled down": (
        ABLATE,
        "denseflow/results/ablation-*",
    ),
}
"""What is measured beside the tables -> its command and its files, from this folder."""

CAPTIONS = {
    "curves": "Training and validation of {stem}, with and without the shuffle",
    "degradation": "What a shuffle costs, {stem}",
    "samples": "Held-out images beside 64 samples of each model, at temperature 1 with one seed "
    "(`python -m benchmarks.papers.samples`)",
}
"""Beginning of a picture's name -> what it shows; the rest of the name stands in its place."""

HOW_TO_RUN = """\
Made by `python -m benchmarks.papers.report`; not written by hand.

Every row of the tables of MixerFlow and DenseFlow is a test, which trains what the row is about:

```bash
pytest benchmarks/ -m gpu                # models of published sizes, on CUDA, 1,000 steps each
pytest benchmarks/ -m gpu --budget paper # the same, as long as published
pytest benchmarks/ -m cpu                # scaled down to small images: minutes for each row
pytest benchmarks/ --budget smoke        # two steps of tiny models: that every command runs
python -m benchmarks.papers.report --results runs/papers/results  # tables, claims and pictures
python -m benchmarks.papers.samples      # samples of scaled-down models side by side
```

- `--budget smoke|short|long|paper`: how long rows are trained (short). {budgets}
- `--root FOLDER`: data sets (data). For each data set NAME there is `NAME_train.npz` with
  `NAME_test.npz` (`images`, uint8 [N, H, W, C], and `labels` for the linear probe), or the folder
  that torchvision or the data set's own archive leaves, see `nflows_mixer.data.load_images`.
  `NAME_test.npz` alone is split, a tenth held out, and its results are called "of the test images
  alone": such are the kept results of MNIST.
  Nothing is downloaded, but for a folder of torchvision that is there and incomplete, which
  torchvision downloads again. Rows without their images are skipped, with a message; the smoke
  budget takes random pixels in their place, whose results are marked synthetic and never reported.
  NAME is one of {names}.
- ImageNet is of two versions that do not compare: MixerFlow's tables need the old one, DenseFlow's
  the new one. It has to be the folder of the archive, `imagenet32` or `imagenet64`, whose files
  say which of the two it is; `NAME_train.npz` does not, and its rows are skipped.
- `--seeds 0,1,2`: one run for each (0).
- `--out FOLDER`: results, a JSON file for each run in `SIZE-BUDGET/` (runs/papers/results; for
  the smoke budget a temporary folder).
  A row whose result is there is read, not trained. Those that are kept are in
  `benchmarks/papers/results`.
- `--scratch FOLDER`: checkpoints, weights, curves and samples of each run (runs/papers/runs; for
  the smoke budget a temporary folder).
  A run that was stopped goes on from its last checkpoint when the command is given again.
- `--inception FILE`: weights of the Inception network, without which rows of the FID are skipped.

A row passes where its figure is finite. The order of the rows of a table is a test of its own,
`-k test_order`, which is an expected failure where a claim is not shown: where it comes out the
other way, where seeds do not decide it, or where there is one seed alone.
"""


def readme(kept: Sequence[Kept], path: Path) -> str:
    """Return the page.

    Args:
        kept: all results.
        path: where it will be, for the links.
    """
    real = [each for each in kept if each.results and each.budget != "smoke"]
    names = dict.fromkeys(f"`{column.data}`" for column in columns("paper"))
    parts = [
        "# Benchmarks",
        HOW_TO_RUN.format(budgets=_budgets(), names=", ".join(names)).strip(),
        "## Claims",
        "Published figures are of full-size models and full training. Ours are of the budget that "
        "is named beside them, a line for each that was run, and only those of one budget are to "
        "be compared with each other: the models of `-m cpu` are scaled down, and so are their "
        "images. Means ± standard deviations over seeds. What was run comes first.",
        "### Order",
        "How many of the pairs of rows come out in the published order, and in tables of "
        "shuffled images how many of the differences between what the shuffle costs, of those "
        "that two seeds or more have. Undecided: the 95% interval of Student's t has 0 in it. One "
        "seed: not counted.",
        markdown(
            ["table", "budget", "as published", *VERDICTS, "command"],
            [*_orders(real), *_order_of_ablation()],
            words=len(VERDICTS) + 4,
        ),
        *_claims(real),
    ]
    if synthetic := sum(each.synthetic for each in kept):
        parts.append(f"Left out: {synthetic} of synthetic images, which are no results.")
    pages = [_link(each.folder / "report.md", path, each.folder.name) for each in real]
    if pages:
        parts.append(f"All figures of each budget, with their settings: {', '.join(pages)}.")
    parts += ["## Other measurements", _measurements(path)]
    pictures = list(_pictures(real, path))
    if pictures:
        parts += ["## Pictures", *pictures]
    return "\n\n".join(parts) + "\n"


def _budgets() -> str:
    texts = []
    for size, mark in (("paper", "gpu"), ("small", "cpu")):
        steps = [
            f"{name} {'as published' if of.steps is None else f'{of.steps:,}'}"
            for name, of in BUDGETS[size].items()
        ]
        texts.append(f"Steps of `-m {mark}`: {', '.join(steps)}.")
    return " ".join(texts)


def _claims(kept: Sequence[Kept]) -> Iterator[str]:
    """A heading and a table of claims for each table of the papers, what was run first."""
    head = ["claim", "published", "ours", "budget", "machine", "date", "command"]
    for key, title in TABLES.items():
        tables = [column for column in columns("paper") if column.table == key]
        lines = [line for column in tables for line in _lines(column, kept)]
        lines.sort(key=lambda line: line[2] == NOT_RUN)
        yield f"### {title}"
        yield markdown(head, lines, words=len(head))


def _lines(column: Column, kept: Sequence[Kept]) -> Iterator[list[str]]:
    """Rows of the table of claims: those of each budget below each other, then what was not run."""
    same = (other for other in columns("small") if other.key == column.key)
    scaled = {original: row for other in same for original, row in other.rows}
    rows = []
    for row, _ in column.rows:
        rows.append((row, row, "paper"))
        if row in scaled:
            rows.append((row, scaled.pop(row), "small"))
    rows += [(original, row, "small") for original, row in scaled.items()]  # of no published size
    for each in kept:
        for original, row, size in rows:
            if each.size == size and each.figures(row):
                yield _line(original, row, each)
    if column.table == "denseflow-4":
        ablation = _ablation()
        for row, _ in column.rows:
            if row.run.model in ablation:
                yield [_claim(row), published_of(row), *ablation[row.run.model]]
    for original, row, size in rows:
        if not any(each.size == size and each.figures(row) for each in kept):
            yield _not_run(original, row, size)


def _claim(row: Row) -> str:
    figure = "" if row.figure == "bits_per_dim" else f", {FIGURES[row.figure]}"
    version = f" ({row.version})" if row.version else ""
    return f"{row.run.data}{version}, {label_of(row)}{figure}"


def _line(original: Row, row: Row, kept: Kept) -> list[str]:
    results = kept.having(row)
    expression, seeds = expression_of(row, kept.size), (result["seed"] for result in results)
    return [
        _claim(row),
        published_of(original),
        text_of(kept.figures(row), DECIMALS.get(row.figure, 3)),
        _budget(kept, results[0]),
        ", ".join(dict.fromkeys(result["machine"] for result in results)),
        max(result["date"] for result in results),
        f"`{command(kept.size, kept.budget, expression, seeds)}`",
    ]


def _not_run(original: Row, row: Row, size: str) -> list[str]:
    what = "published size" if size == "paper" else "scaled down"
    asked = f"`{command(size, 'short', expression_of(row, size))}`"
    return [_claim(row), published_of(original), NOT_RUN, what, DASH, DASH, asked]


def _budget(kept: Kept, result: Mapping[str, Any]) -> str:
    what = "published size" if kept.size == "paper" else "scaled down"
    version = result["data"]["version"]
    images = f", {version}" if version.startswith("of ") else ""
    return f"{what}, {kept.budget}: {result['steps']:,} steps{images}"


def _orders(kept: Iterable[Kept]) -> Iterator[list[str]]:
    """One row for each table and data set, of each budget."""
    for each in kept:
        found: dict[tuple[str, str], list[Comparison]] = {}
        for column in columns(each.size):
            found.setdefault((column.table, column.data), []).extend(column.claims(each))
        for (table, data), claims in found.items():
            if claims:
                asked = command(each.size, each.budget, f"test_order and {table}-{data}")
                yield [
                    _named(table, data),
                    f"{each.size}-{each.budget}",
                    *_counted(claims),
                    f"`{asked} --out benchmarks/papers/results`",
                ]


def _counted(claims: Sequence[Comparison]) -> list[str]:
    counts = tally(claims)
    same = f"{counts['as published']} of {len(claims) - counts[ONE_SEED]}"
    return [same, *(str(counts[verdict]) for verdict in VERDICTS)]


def _named(table: str, data: str) -> str:
    return f"{TABLES[table].split(':')[0]}: {data}"


def _ablation() -> dict[str, list[str]]:
    """Model -> ours, budget, machine, date and command of a row of DenseFlow's Table 4."""
    results = json.loads(ABLATION.read_text())
    found = {}
    for name, jobs in by_row(results["jobs"]).items():
        if name in TABLE:
            found[ABLATED[name].preset] = [
                text_of([job["importance_bits_per_dim"] for job in jobs], 3),
                _ablation_budget(results),
                results["machine"],
                results.get("date", DASH),
                f"`{ABLATE} --only '[\"{name}\"]'`",
            ]
    return found


def _ablation_budget(results: Mapping[str, Any]) -> str:
    recipe = results["setting"]["recipe"]
    return f"scaled down: {recipe['steps']:,} steps of {recipe['batch_size']} images"


def _order_of_ablation() -> Iterator[list[str]]:
    """The row of DenseFlow's Table 4, whose seeds are jobs of one file."""
    results = json.loads(ABLATION.read_text())
    bits = {
        name: {job["seed"]: job["importance_bits_per_dim"] for job in jobs}
        for name, jobs in by_row(results["jobs"]).items()
        if name in TABLE
    }
    claims = []
    for pair in combinations(bits, 2):
        better, worse = sorted(pair, key=_published)
        here = [
            bits[worse][seed] - bits[better][seed] for seed in bits[worse] if seed in bits[better]
        ]
        if here:
            difference = round(_published(worse) - _published(better), 4)
            claims.append(Comparison(f"{better} better than {worse}", difference, tuple(here)))
    yield [
        _named("denseflow-4", "cifar10"),
        _ablation_budget(results),
        *_counted(claims),
        f"`{ABLATE}`",
    ]


def _published(name: str) -> float:
    published = ABLATED[name].published
    assert published is not None
    return published


def _measurements(path: Path) -> str:
    lines = []
    for what, (asked, pattern) in MEASUREMENTS.items():
        tables = [_link(file, path) for file in _found(pattern, ".md")]
        lines.append([what, f"`{asked}`", ", ".join(tables) or "not kept"])
    return markdown(["measurement", "command", "kept table"], lines, words=3)


def _pictures(kept: Iterable[Kept], path: Path) -> Iterator[str]:
    for each in kept:
        for picture in sorted(each.folder.glob("*.png")):
            kind, _, rest = picture.stem.partition("-")
            caption = CAPTIONS.get(kind, picture.stem).format(stem=rest)
            yield f"{caption}; {each.size}-{each.budget}:\n\n!{_link(picture, path)}"
    for what, (_, pattern) in MEASUREMENTS.items():
        for picture in _found(pattern, ".png"):
            yield f"{what[0].upper()}{what[1:]}:\n\n!{_link(picture, path)}"


def _found(pattern: str, ending: str) -> list[Path]:
    return sorted(BENCHMARKS.glob(pattern + ending))


def _link(file: Path, page: Path, name: str | None = None) -> str:
    where = os.path.relpath(file.resolve(), page.resolve().parent)
    return f"[{name or file.stem}]({Path(where).as_posix()})"
