"""A run that is sent a signal ends with the usual status, and one line says how to go on."""

import os
import signal
import subprocess
import threading
import time

import pytest
from lightning.pytorch import Callback

from nflows_mixer import cli
from nflows_mixer.cli import main
from nflows_mixer.training import AtomicCheckpointIO, FlowModule, Recipe
from nflows_mixer.training import run as run_module
from tests.test_command import MODEL
from tests.training import COMMAND, noise_data, run, tiny

LONG = ["train", *MODEL, "--recipe.steps=1000000", "--recipe.batch_size=20"]
LONG += ["--checkpoint_every=20", "--validate_every=1000000", "--trainer.accelerator=cpu"]
LONG += ["--trainer.enable_progress_bar=false"]


def wait_for(checkpoint, longer_than=0, seconds=60):
    """Until there is a checkpoint that is newer."""
    end = time.monotonic() + seconds
    while not checkpoint.exists() or checkpoint.stat().st_mtime_ns <= longer_than:
        assert time.monotonic() < end
        time.sleep(0.05)


def step_of(checkpoint):
    return AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"]


@pytest.mark.slow
def test_stopped_run_says_how_to_go_on_and_goes_on(tmp_path, capsys):
    command = [*LONG, "--out", str(tmp_path / "run")]
    checkpoint = tmp_path / "run/last.ckpt"
    process = subprocess.Popen([*COMMAND, *command], stderr=subprocess.PIPE, text=True)
    wait_for(checkpoint)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    lines = [line for line in said.splitlines() if "stopped by" in line]
    assert lines == [
        f"stopped by SIGTERM: {checkpoint} is whole; the same command with --resume (in Python, "
        "resume=True) goes on from it"
    ]
    assert "Traceback" not in said
    first, written = step_of(checkpoint), checkpoint.stat().st_mtime_ns
    assert first > 0 and first % 20 == 0

    def interrupt():
        wait_for(checkpoint, longer_than=written)
        os.kill(os.getpid(), signal.SIGINT)

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit) as caught:
        main([*command, "--resume"])
    thread.join()
    assert caught.value.code == 130 and step_of(checkpoint) > first
    said = capsys.readouterr().err
    assert said.count("stopped by") == 1 and f"stopped by SIGINT: {checkpoint} is whole" in said
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


class SignalAt(Callback):
    def __init__(self, number, hook):
        setattr(self, hook, lambda *_: signal.raise_signal(number))


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_start", "on_test_start"])
def test_signal_at_any_place_of_a_run(tmp_path, capsys, number, status, hook):
    module = FlowModule(tiny(), Recipe(steps=2, batch_size=10))
    callbacks = (SignalAt(number, hook),)
    with pytest.raises(SystemExit) as caught:
        run(module, noise_data(), tmp_path, validate_every=1, callbacks=callbacks)
    assert caught.value.code == status
    said = capsys.readouterr().err
    begun = hook != "on_train_batch_start"
    way = "is whole; the same command with --resume" if begun else "no checkpoint has been written"
    if hook != "on_validation_start":
        assert way in said
    assert said.count("stopped by") == 1
    assert (tmp_path / "weights.safetensors").exists() == (hook == "on_test_start")


def test_signal_while_pictures_are_drawn_is_no_failure_of_the_drawing(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "draw", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        run(FlowModule(tiny(), Recipe(steps=1, batch_size=10)), noise_data(), tmp_path)
    assert caught.value.code == 143 and (tmp_path / "results.json").exists()


def test_signal_before_a_run_ends_the_command_with_a_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "train", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 130
    assert "stopped by SIGINT: start the same command again" in capsys.readouterr().err
