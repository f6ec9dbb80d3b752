"""The tables of the two papers, row by row: see benchmarks/README.md."""
