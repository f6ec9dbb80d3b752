"""Write down what came out beside what was published.

    python -m benchmarks.papers.report                # of the results that are kept here
    python -m benchmarks.papers.report --results runs/papers/results

Of each folder SIZE-BUDGET of results: report.md with all tables that have a result and what they
claim, and pictures of the shuffles. Then README.md: of the results that are kept here the one of
the benchmarks, of others one beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from benchmarks.papers.budgets import BUDGETS
from benchmarks.papers.figures import worst_image
from benchmarks.papers.kept import (
    DASH,
    DECIMALS,
    ONE_SEED,
    RESULTS,
    Column,
    Kept,
    columns,
    command,
    error_of,
    label_of,
    markdown,
    mean_of,
    published_of,
    read,
    tally,
    text_of,
)
from benchmarks.papers.models import MODELS
from benchmarks.papers.picture import save_pictures
from benchmarks.papers.readme import readme
from benchmarks.papers.rows import FIGURES, TABLES, Row

ON_GPUS = {
    "peak_memory_mb": ("peak memory, MB", "{:,.0f}"),
    "fraction_of_peak": ("of the GPU's float32 peak", "{:.1%}"),
}
"""What results have on a GPU alone -> its column, and how it is written."""
PRINTED = ("mixerflow-1", "mixerflow-2", "mixerflow-4", "mixerflow-5", "denseflow-2")
"""Tables that print numbers of parameters."""
COST_NOTE = (
    "Published costs of a shuffle take the figures without a shuffle from Table 1, which are of "
    "smaller baselines."
)
NOTES = {
    "mixerflow-4": "Published parameters of MixerFlow are those of Table 1; this table prints "
    f"11.43 M for what can only be the same model. {COST_NOTE}",
    "mixerflow-5": COST_NOTE,
    "denseflow-2": "Here: what the published number of epochs would take at the speed of the run.",
}
"""Table -> what has to be known beside it."""
SMALL_NOTES = {
    "mixerflow-9": "Scaled down, 30 layers are 4 and 60 layers 8. The row of both, linear blocks "
    "and shift layers, is MixerFlow with this table's learning rate; its published figure is that "
    "of Table 1.",
}
"""Table -> what has to be known beside it where models are scaled down."""


def main(results: str = str(RESULTS)) -> None:
    """Write report.md and pictures for each budget that has results, and README.md.

    Args:
        results: folder of the results.
    """
    folder = Path(results)
    kept = read(folder)
    for each in kept:
        pictures = save_pictures(each)
        page = each.folder / "report.md"
        page.write_text(report(each))
        print(*pictures, page, sep="\n")
    path = Path(__file__).parents[1] if folder.resolve() == RESULTS else folder
    path /= "README.md"
    path.write_text(readme(kept, path))
    print(path)


def report(kept: Kept) -> str:
    """Return the page of one size and budget."""
    parts = [
        f"### {_title(kept)}",
        "Made by `python -m benchmarks.papers.report`; not written by hand.",
        _introduction(kept),
    ]
    empty = []
    for column in columns(kept.size):
        if any(kept.figures(row) for _, row in column.rows):
            parts += _section(column, kept)
        else:
            empty.append(_title_of(column))
    if empty:
        parts.append(f"No result at this budget: {'; '.join(dict.fromkeys(empty))}.")
    parts += left_out(kept)
    return "\n\n".join(parts) + "\n"


def left_out(kept: Kept) -> list[str]:
    """Return a line for each kind of results that is not reported."""
    lines = []
    if kept.synthetic:
        lines.append(f"Left out: {kept.synthetic} of synthetic images, which are no results.")
    if kept.other_version:
        lines.append(
            f"Left out: {kept.other_version} of another version of the data set than the table's."
        )
    return lines


def _title(kept: Kept) -> str:
    models = "Models of published sizes" if kept.size == "paper" else "Scaled-down models"
    if kept.budget == "smoke":
        models = "Tiny models"
    return f"{models}, budget {kept.budget}"


def _introduction(kept: Kept) -> str:
    budget = BUDGETS[kept.size][kept.budget]
    steps = "the published number of steps" if budget.steps is None else f"{budget.steps:,} steps"
    text = f"Published: full-size models, full training. Ours: {steps}"
    if kept.budget == "smoke":
        return f"{text}, which show that the commands run and are no results."
    if kept.size == "small":
        text += (
            ", of scaled-down models, on images averaged down to 16 x 16 (MNIST: 28 x 28). "
            "Published figures and ours are of other images, models and lengths of training, and "
            "are not to be compared with each other: what can be is the order of rows and what "
            "changes between them. Seconds and images/s are wall times of one thread beside "
            "other work. Models of Tables 1, 4, 5 and 7 of MixerFlow have about as many parameters "
            "as each other"
        )
    elif kept.budget != "paper":
        text += (
            ", a part of the published training: figures are not to be compared with published "
            "ones, the order of rows can be"
        )
    return (
        f"{text}.\n\nOurs are means ± standard deviations over seeds; the worst image is "
        "that of all seeds. Differences in claims are means ± standard errors, of seeds "
        "that both rows have. Above 0 means as published; undecided is what the 95% interval of "
        "Student's t around it has 0 in: 12.7 standard errors of two seeds, 4.3 of three. Of one "
        "seed there is neither deviation nor error: such claims are shown and not counted.\n\n"
        "The last row of bits/dim, in brackets, is the best of three simple models of the same "
        "images (uniform, a histogram of each pixel, a normal distribution with full covariance): "
        "a shuffle changes none of them, and a model above it is no better at this budget than "
        "that model."
    )


def _section(column: Column, kept: Kept) -> list[str]:
    parts = [f"#### {_title_of(column)}", _table(column, kept)]
    for notes in (NOTES, SMALL_NOTES if kept.size == "small" else {}):
        if column.table in notes:
            parts.append(notes[column.table])
    parts += _failures(column, kept)
    parts += _claims(column, kept)
    yardstick = column.yardstick(kept)
    if yardstick:
        parts.append(_above(column, yardstick, kept))
    results = [result for _, row in column.rows for result in kept.having(row)]
    parts.append(_setting(column, results, kept))
    return parts


def _title_of(column: Column) -> str:
    version = f" of the {column.version} version" if column.version else ""
    return f"{TABLES[column.table]} ({column.data}{version}, {FIGURES[column.figure]})"


def _table(column: Column, kept: Kept) -> str:
    figure = FIGURES[column.figure]
    here = f"ours ({kept.budget} budget)"
    head = [
        "model",
        "published: parameters",
        f"published: {figure}",
        f"{here}: parameters",
        f"{here}: {figure}",
        "seeds",
        "worst image, bits/dim",
        "training, s",
        "images/s",
    ]
    cells = [_cells(original, row, kept) for original, row in column.rows]
    if yardstick := column.yardstick(kept):
        label, bits = yardstick
        line = [DASH] * len(head)
        line[0], line[4] = f"({label})", f"{bits:.{DECIMALS.get(column.figure, 3)}f}"
        cells.append(line)
    for key, (name, form) in ON_GPUS.items():
        measured = [
            [result[key] for result in kept.having(row) if result.get(key) is not None]
            for _, row in column.rows
        ]
        if any(measured):
            head.append(name)
            # The row of the simple model is one more, and has none.
            for line, values in zip(cells, [*measured, []]):
                line.append(form.format(mean_of(values)) if values else DASH)
    return markdown(head, cells, words=1)


def _cells(original: Row, row: Row, kept: Kept) -> list[str]:
    model, results, figures = MODELS[original.run.model], kept.having(row), kept.figures(row)
    printed = original.table in PRINTED and model.parameters is not None
    worst = [worst_image(row, result) for result in results]
    return [
        label_of(row),
        f"{model.parameters:.4g} M" if printed else DASH,
        published_of(original),
        ", ".join(dict.fromkeys(f"{result['parameters']:,}" for result in results)) or DASH,
        text_of(figures, DECIMALS.get(row.figure, 3)),
        str(len(figures)) if figures else DASH,
        f"{_highest(worst):.2f}" if worst else DASH,
        f"{mean_of([r['train_seconds'] for r in results]):,.0f}" if results else DASH,
        f"{mean_of([r['images_per_second'] for r in results]):,.0f}" if results else DASH,
    ]


def _failures(column: Column, kept: Kept) -> list[str]:
    """A line for each run without figures, which are in no mean above."""
    return [
        f"In no mean above, as its loss was not finite: {label_of(row)}, seed {seed} "
        f"({why.split(':')[0]})."
        for _, row in column.rows
        for (name, seed), why in sorted(kept.failed.items())
        if name == row.run.name
    ]


def _highest(values: Iterable[float]) -> float:
    """Of bits/dim, where NaN is the worst of all."""
    highest = -inf
    for value in values:
        highest = nan if isnan(value) or isnan(highest) else max(value, highest)
    return highest


def _claims(column: Column, kept: Kept) -> list[str]:
    claims = column.claims(kept)
    if not claims:
        return ["No claim can be checked yet: that takes results of two rows."]
    lines = [
        [
            claim.words,
            f"{claim.published:+.2f}",
            text_of(claim.here, 3, error_of, "+"),
            str(len(claim.here)),
            claim.verdict,
        ]
        for claim in claims
    ]
    head = ["claim", "published: by", f"ours ({kept.budget} budget): by", "seeds", "verdict"]
    counts = tally(claims)
    single = counts.pop(ONE_SEED, 0)
    total, same = sum(counts.values()), counts.pop("as published", 0)
    others = "".join(f"; {verdict}: {count}" for verdict, count in sorted(counts.items()))
    text = f"{same} of {total} claims of two seeds or more come out as published{others}."
    if not total:
        text = "No claim has two seeds yet."
    if single:
        text += f" Of one seed, not counted: {single}."
    return [markdown(head, lines, words=1), text]


def _above(column: Column, yardstick: tuple[str, float], kept: Kept) -> str:
    """Which models have not learned more than a simple one."""
    label, bits = yardstick
    shown = [(row, kept.figures(row)) for _, row in column.rows]
    means = {label_of(row): mean_of(figures) for row, figures in shown if figures}
    found = [f"{name} ({mean:.3f})" for name, mean in means.items() if not mean < bits]
    return f"Not below {bits:.3f} bits/dim ({label}) at this budget: {'; '.join(found) or 'none'}."


def _setting(column: Column, results: Sequence[Mapping[str, Any]], kept: Kept) -> str:
    seeds = {result["seed"] for result in results}
    words = f"{column.table}-{column.data}"
    return (
        f"{_each(_steps(r) for r in results)}; {_optimiser(results)}; "
        f"{_each(_data(r) for r in results)}; "
        f"{_each(_evaluated(r, column.figure) for r in results)}; "
        f"{_each(r['machine'] for r in results)}; "
        f"torch {_each(r['versions']['torch'] for r in results)}; "
        f"{_each(sorted(r['date'] for r in results))}. "
        f"`{command(kept.size, kept.budget, words, seeds)}`, then "
        "`python -m benchmarks.papers.report --results runs/papers/results`."
    )


def _each(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _steps(result: Mapping[str, Any]) -> str:
    return f"{result['steps']:,} steps of {result['recipe']['batch_size']} images"


def _data(result: Mapping[str, Any]) -> str:
    data = result["data"]
    version = f" ({data['version']})" if data["version"] else ""
    shape = " x ".join(map(str, data["image_shape"]))
    return (
        f"{data['data']}{version}, split {data['split_hash']}, {data['train_images']:,} images of "
        f"{shape} to train on"
    )


def _evaluated(result: Mapping[str, Any], figure: str) -> str:
    if figure == "importance_bits_per_dim" and figure in result:
        bound = result[figure]
        return f"figures of {bound['test_images']:,} test images, {bound['draws']:,} draws of each"
    if figure.startswith("probe"):
        fitted = result["probe"]
        return (
            f"probes fitted to the latents of {fitted['train_images']:,} images and tested on "
            f"those of {fitted['test_images']:,}"
        )
    part, count = list(result["evaluated_images"].items())[-1]
    return f"figures of {count:,} {part} images"


def _optimiser(results: Sequence[Mapping[str, Any]]) -> str:
    """The usual one, and the models that have another."""
    of_model: dict[str, str] = {}
    for result in results:
        recipe = result["recipe"]
        text = f"{recipe['optimizer'].capitalize()} at {recipe['learning_rate']:g}"
        of_model[MODELS[result["run"]["model"]].label] = text
    usual = Counter(of_model.values()).most_common(1)[0][0]
    others = [f"{label}: {text}" for label, text in of_model.items() if text != usual]
    return usual + (f" ({', '.join(others)})" if others else "")


if __name__ == "__main__":
    auto_cli(main)
