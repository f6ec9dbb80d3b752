"""Whether loading images keeps training waiting."""
