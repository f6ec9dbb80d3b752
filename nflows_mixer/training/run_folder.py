"""The folder of a run: what is in it, whether it is that run's, and what may be deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nflows_mixer._checks import mismatch
from nflows_mixer._distributed import is_first_process
from nflows_mixer._files import read_json, write_json

CHECKPOINT = "last.ckpt"
DESCRIPTION = "run.json"
_KEYS = {"split_hash", "recipe", "architecture"}
"""By which a run's own description is known: others may have a file of that name."""
_WRITTEN = (
    r"\.?((run|results|history)\.json|results\.md|config\.yaml|last\.ckpt|(curve|samples)\.png"
    r"|(weights|head)\.safetensors)(\.part)?|samples/step-\d+\.png"
    r"|tensorboard/(events\.out\.tfevents\..*|hparams\.yaml)"
)
"""Files of a run, by their place in its folder; a killed run may leave a part of one."""


def prepare(out: Path, run: Mapping[str, Any], resume: bool, overwrite: bool) -> Path | None:
    """Return the checkpoint to go on from, if there is one; make the folder ready otherwise.

    Args:
        out: the folder.
        run: what the run is, as JSON has it.
        resume: whether to go on with a run that is there.
        overwrite: whether the files of a run that is there are deleted. Nothing else ever is: a
            folder that has other files is refused.

    Raises:
        ValueError: if there is another run in the folder, or what is there is no run's.

    Example:
        >>> import tempfile
        >>> prepare(Path(tempfile.mkdtemp()) / "run", {"seed": 0}, resume=True, overwrite=False)
    """
    checkpoint = out / CHECKPOINT
    resumed = checkpoint if resume and checkpoint.exists() else None
    if not is_first_process():  # the first process has done it, before it started this one
        return resumed
    (written, others), before = _files_in(out), read_json(out / DESCRIPTION, _KEYS)
    if overwrite and others:
        raise mismatch(
            "fit",
            f"nothing but a run in {str(out)!r} to overwrite",
            f"{len(others)} files that no run has written, such as {others[0]!r}",
            "move them, or name another folder (--out); nothing was deleted",
        )
    if before is None and written and (resumed is None or DESCRIPTION in written):
        raise mismatch(
            "fit",
            f"no files in {str(out)!r} that the run would write over",
            ", ".join(map(repr, sorted(written)[:3])) + ", which no run has written",
            f"move them, or name another folder (--out); a run has a {DESCRIPTION} of its own",
        )
    if before is not None and overwrite:
        # The description last: a folder that is half deleted is still a run's.
        for name in sorted(written, key=lambda each: each == DESCRIPTION):
            (out / name).unlink()
    elif before is not None and (checkpoint.exists() or (out / "results.json").exists()):
        if not resume:
            raise mismatch(
                "fit",
                "a folder without a run",
                f"one with a run in {str(out)!r}",
                "resume it (--resume), overwrite it (--overwrite), or name another (--out)",
            )
        if changed := list(_differences(before, run)):
            raise mismatch(
                "fit",
                f"the run that is in {str(out)!r}",
                "one that differs in " + "; ".join(changed),
                "give what it was started with, or name another folder",
            )
    write_json(out / DESCRIPTION, run)
    return resumed


def _files_in(out: Path) -> tuple[list[str], list[str]]:
    """Files in a folder, at any depth: those that a run writes, and others."""
    written: list[str] = []
    others: list[str] = []
    for folder, folders, files in os.walk(out):
        # A link to a folder is a file here: what it leads to is not the run's.
        for name in [*files, *(each for each in folders if Path(folder, each).is_symlink())]:
            place = Path(folder, name).relative_to(out).as_posix()
            (written if re.fullmatch(_WRITTEN, place) else others).append(place)
    return written, sorted(others)


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield in what two descriptions of runs differ, each as a few words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))
    elif before != now:
        yield f"{name}: {before} there, {now} now"
