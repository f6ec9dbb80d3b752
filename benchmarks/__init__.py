"""What the claims of this repository and of the papers are measured by: see README.md."""
