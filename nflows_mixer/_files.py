"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, force it to the disk, and rename it into place.

    Whoever reads ``path`` finds the old file or the new one; on any error the old one stays, and
    the part that was written is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system, as only there a rename is one step; of one name, so that what a
    # process that was killed left behind is written over.
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        # The new name is an entry of the folder, which has to reach the disk as well.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, as ``replace_file`` writes."""
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, keys: Collection[str]) -> dict[str, Any] | None:
    """Return the object in a file of this package's; None without one, or where it is another's.

    Args:
        path: the file.
        keys: what an object that this package has written has.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and {*keys} <= {*value} else None
