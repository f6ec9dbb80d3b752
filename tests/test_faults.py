"""Runs that are killed, disks that are full, files cut short: nothing is lost or hidden."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._pytree import tree_flatten

from nflows_mixer import _files
from nflows_mixer.cli import run
from nflows_mixer.training import AtomicCheckpointIO, FlowModule, Recipe
from nflows_mixer.transforms import AffineCoupling
from tests.training import QUIET_COMMAND, history, noise_data, tiny
from tests.training import run as fit_quietly

# Six batches are a pass over the data, so that runs see three.
ARGUMENTS = ["train", "--model.num_layers=1", "--model.hidden_features=16", "--recipe.steps=14"]
ARGUMENTS += ["--recipe.batch_size=200", "--recipe.ema_decay=0.8", "--checkpoint_every=3"]
ARGUMENTS += ["--validate_every=5", *QUIET_COMMAND]

# Each attempt is a process of its own, forked from one that has imported everything and computed
# nothing; it kills itself at the given point.
DRIVER = textwrap.dedent(
    """
    import functools, os, signal, sys
    from lightning.pytorch import Callback
    from nflows_mixer import _files
    from nflows_mixer import cli
    from nflows_mixer.training import run
    import sklearn.datasets, torchvision, matplotlib.figure, tensorboard.compat

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    class DieAfter(Callback):
        def __init__(self, step):
            self.step = step
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == self.step:
                die()

    def attempt(out, arguments, death):
        kind, _, number = death.partition(":")
        if kind == "step":
            fit = run.fit
            dying = lambda *a, **k: fit(*a, callbacks=(DieAfter(int(number)),), **k)
            cli.fit = functools.wraps(fit)(dying)
        if kind == "write":  # while the number-th checkpoint of this attempt is half on the disk
            save, count = run.AtomicCheckpointIO.save_checkpoint, [0]
            def counted(self, checkpoint, path, storage_options=None):
                count[0] += 1
                if count[0] == int(number):
                    _files.os.fsync = lambda handle: die()
                save(self, checkpoint, path, storage_options)
            run.AtomicCheckpointIO.save_checkpoint = counted
        cli.run([*arguments, "--out", out, "--resume"])

    arguments = sys.argv[2:]
    for each in sys.argv[1].split(";"):
        out, *deaths = each.split(",")
        for death in deaths:
            child = os.fork()
            if not child:
                attempt(out, arguments, death)
                sys.stdout.flush()
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            assert died == (death != "never"), (death, status)
    """
)


@pytest.mark.slow
def test_killed_run_ends_with_the_numbers_of_one_that_was_not(tmp_path):
    deaths = "step:1,step:5,write:2,step:10,write:1,step:13,never"
    runs = f"{tmp_path / 'whole'},never;{tmp_path / 'killed'},{deaths}"
    command = [sys.executable, "-c", DRIVER, runs, *ARGUMENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (whole, figures), (resumed, figures_resumed) = (
        (
            torch.load(tmp_path / run / "last.ckpt", weights_only=True),
            json.loads((tmp_path / run / "results.json").read_text()),
        )
        for run in ("whole", "killed")
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        (expected, form), (got, form_of_resumed) = map(tree_flatten, (whole[part], resumed[part]))
        assert form == form_of_resumed
        for one, other in zip(expected, got):
            assert torch.equal(one, other) if torch.is_tensor(one) else one == other
    assert whole["global_step"] == 14
    assert any(name.startswith("average.") for name in whole["state_dict"])
    for name in ("bits_per_dim", "worst_image", "round_trip_error"):
        assert figures[name] == figures_resumed[name]
    names = ("step", "train/bits_per_dim", "validation/bits_per_dim")
    curves = [
        [[entry.get(name) for name in names] for entry in history(tmp_path / run)]
        for run in ("whole", "killed")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 4


def run_into(out, num_layers=1, **arguments):
    """A few steps."""
    torch.manual_seed(0)
    module = FlowModule(tiny(num_layers=num_layers), Recipe(steps=4, batch_size=10))
    return fit_quietly(module, noise_data(), out, **{"checkpoint_every": 2} | arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that came to its end."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run_into(out)
    return out


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_full_disk_is_an_error_and_the_checkpoint_before_stays(folder, monkeypatch):
    before = (folder / "last.ckpt").read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="expected room for a checkpoint of .* MiB, got 'No space"):
        AtomicCheckpointIO().save_checkpoint({"step": 1}, folder / "last.ckpt")
    assert (folder / "last.ckpt").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_truncated_checkpoint_is_named(folder):
    whole = (folder / "last.ckpt").read_bytes()
    for kept in (5000, 100, 0):
        (folder / "last.ckpt").write_bytes(whole[:kept])
        expected = f"last.ckpt: expected a whole checkpoint, .* {kept:,} bytes"
        with pytest.raises(ValueError, match=expected):
            run_into(folder, resume=True)


def test_checkpoint_with_code_is_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return os.system, ("exit 1",)

    torch.save({"state_dict": Code()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="expected tensors and plain values, got .*system"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")


def test_checkpoint_of_another_model_is_refused(folder):
    with pytest.raises(ValueError, match="num_layers"):
        run_into(folder, num_layers=2, resume=True)
    (folder / "run.json").unlink()  # as if copied from elsewhere
    with pytest.raises(ValueError, match="checkpoint: expected the weights of this flow, .*: no f"):
        run_into(folder, num_layers=2, resume=True)


def test_run_in_the_folder_is_not_overwritten_unless_asked(folder):
    first = json.loads((folder / "results.json").read_text())
    with pytest.raises(ValueError, match="expected a folder without a run.*--resume.*--overwrite"):
        run_into(folder)
    for option in ("overwrite", "resume"):
        assert run_into(folder, **{option: True})["bits_per_dim"] == first["bits_per_dim"]


def test_loss_that_is_not_finite_names_the_layer_and_leaves_the_checkpoint(tmp_path):
    class Overflow(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 3:
                coupling = next(m for m in module.flow.modules() if isinstance(m, AffineCoupling))
                torch.nn.init.constant_(coupling.conditioner.final.bias, 1e4)

    with pytest.raises(FloatingPointError, match="step 3: .*AffineCoupling.* made values"):
        run_into(tmp_path / "run", callbacks=(Overflow(),))
    checkpoint = AtomicCheckpointIO().load_checkpoint(tmp_path / "run/last.ckpt")
    assert checkpoint["global_step"] == 2
    assert all(torch.isfinite(v.float()).all() for v in checkpoint["state_dict"].values())


def test_command_says_what_is_wrong_without_a_traceback(tmp_path):
    with pytest.raises(SystemExit, match="error: step .*: expected a finite loss .*learning rate"):
        run(
            [
                *ARGUMENTS,
                "--recipe.learning_rate=1e6",
                "--recipe.gradient_skip=null",
                "--out",
                str(tmp_path / "run"),
            ]
        )
