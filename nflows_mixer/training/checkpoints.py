"""Checkpoints that are whole or not there, and are read without running code."""

from __future__ import annotations

import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from nflows_mixer._checks import mismatch
from nflows_mixer._files import replace_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning plugin: checkpoints are written beside their place, forced to disk, and renamed.

    A run that is killed, or finds the disk full, while it writes leaves the checkpoint before
    intact. Reading takes tensors and plain values only (``weights_only=True``).

    Raises:
        OSError: if a checkpoint cannot be written; the one before stays.
        ValueError: if a file is no whole checkpoint, or holds code.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
        >>> AtomicCheckpointIO().load_checkpoint(path)
        {'step': 3}
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; the file of that name is the old or the new one at any time."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            replace_file(Path(path), content.getvalue())
        except OSError as error:
            size = content.tell() / 2**20
            raise OSError(
                error.errno,
                f"{path}: expected room for a checkpoint of {size:.1f} MiB, got "
                f"{error.strerror!r}; make room and resume: the checkpoint before is intact",
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, onto the CPU unless told otherwise."""
        if not os.path.exists(path):
            raise mismatch(str(path), "a checkpoint", "no such file", "check the path")
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(
                r"unsupported global:? (?:GLOBAL )?(\S+)", str(error), re.IGNORECASE
            )
            reason = f"code, {refused[1]}" if refused else str(error).split("\n")[0]
            advice = "take a checkpoint of this package; none of its own holds code"
            raise mismatch(str(path), "tensors and plain values", reason, advice) from None
        except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise mismatch(
                str(path),
                "a whole checkpoint",
                f"one of {os.path.getsize(path):,} bytes that cannot be read ({reason})",
                "it was cut short or changed: take an older one, or train again",
            ) from None
