"""Kept pages of the benchmarks are made of the kept figures; numbers are written as they are."""

import math

import pytest

from benchmarks.denseflow.rows import ROWS, TABLE
from benchmarks.tables import ablation_claims, kept_pages, spread, table

PAGES = {"/".join(path.parts[-3:]): (path, text) for path, text in kept_pages()}


@pytest.mark.parametrize("name", PAGES)
def test_kept_page_is_of_the_kept_figures(name):
    path, text = PAGES[name]
    assert path.read_text() == text


def test_cells_take_the_format_of_their_column():
    text = table(
        "name | ms {:,.1f} | part {:.1%}", [["a", 1234.56, 0.5], ["b", "none", None], ["c"]]
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n")]
    assert cells[0] == ["name", "ms", "part"]
    assert cells[2:] == [["a", "1,234.6", "50.0%"], ["b", "none", ""], ["c", "", ""]]


def test_means_and_deviations_by_hand():
    assert spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert spread([1.0, 2.0, 3.0], 2, "+", error=True) == "+2.00 ± 0.58"
    assert (spread([1.5], 1), spread([], 1)) == ("1.5", "")
    assert spread([1.0, math.nan], 2, "+") == "+nan ± nan"


def test_ablation_counts_pairs_of_rows_in_the_published_order():
    def jobs(sign):
        return {
            name: [{"seed": 0, "importance_bits_per_dim": sign * ROWS[name].published}]
            for name in TABLE
        }

    assert [claim.mean > 0 for claim in ablation_claims(jobs(1))] == [True] * 15
    assert [claim.mean > 0 for claim in ablation_claims(jobs(-1))] == [False] * 15
