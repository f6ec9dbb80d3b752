"""The folder of a run: nothing but the run's own files is deleted, or written over."""

import json
import os
import subprocess
import sys

import pytest

from nflows_mixer.cli import main
from nflows_mixer.training import FlowModule, Recipe
from tests.test_command import MODEL, RUN
from tests.test_training_loop import StopAt
from tests.training import COMMAND, noise_data, run, tiny

TRAIN = ["train", *MODEL, *RUN, "--recipe.steps=1"]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_overwrite_deletes_the_run_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([*TRAIN, "--out", "runs"])
    main([*TRAIN, "--out", "runs/second"])
    (tmp_path / "runs/notes.txt").write_text("notes")
    (tmp_path / "runs/samples").mkdir(exist_ok=True)
    (tmp_path / "runs/samples/mine.png").write_bytes(b"mine")
    before = files(tmp_path)
    for out in ("runs", ".", str(tmp_path)):
        with pytest.raises(SystemExit, match="files that no run has written.*nothing was deleted"):
            main([*TRAIN, "--out", out, "--overwrite"])
        assert files(tmp_path) == before
    # What is the run's own is deleted where it is alone, also what the next does not write.
    parts = [tmp_path / "runs/second" / name for name in (".last.ckpt.part", "samples/step-99.png")]
    for part in parts:
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"of another length")
    main([*TRAIN, "--out", "runs/second", "--overwrite", "--seed=3"])
    after = files(tmp_path)
    assert not {*parts} & {*after}
    assert json.loads((tmp_path / "runs/second/results.json").read_text())["seed"] == 3
    others = {path: text for path, text in before.items() if "second" not in path.parts}
    assert {path: after[path] for path in others} == others
    events = [sum("tfevents" in path.name for path in paths) for paths in (before, after)]
    assert events[0] == events[1] > 0


@pytest.mark.slow
def test_installed_command_refuses_to_overwrite_what_is_not_the_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    subprocess.run([*COMMAND, *TRAIN, "--out", "run"], check=True, **options)
    (tmp_path / "run/notes.txt").write_text("notes")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/run.json").write_text('{"my": "settings"}')
    (tmp_path / "mine/config.yaml").write_text("notes")
    before = files(tmp_path)
    for out in ("run", "mine"):
        command = [*COMMAND, *TRAIN, "--out", out, "--overwrite"]
        refused = subprocess.run(command, check=False, **options)
        assert refused.returncode == 1 and "no run has written" in refused.stderr
        assert files(tmp_path) == before


def test_link_is_not_followed(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/step-00000001.png").write_bytes(b"another run's")
    run(FlowModule(tiny(), Recipe(steps=1, batch_size=10)), noise_data(), tmp_path / "run")
    (tmp_path / "run/samples").symlink_to(tmp_path / "pictures")
    with pytest.raises(ValueError, match="1 files that no run has written, such as 'samples'"):
        again = FlowModule(tiny(), Recipe(steps=1, batch_size=10))
        run(again, noise_data(), tmp_path / "run", overwrite=True)
    assert (tmp_path / "pictures/step-00000001.png").exists()


@pytest.mark.parametrize("name", ["results.json", "config.yaml", "samples.png", "run.json"])
def test_files_of_that_name_that_no_run_has_written_are_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    nothing_is_touched(tmp_path, name)


@pytest.mark.parametrize("said", ["{}", "[1]", "not JSON", '{"my": "settings"}'])
def test_another_file_of_the_name_run_json_makes_no_run_of_what_lies_beside_it(tmp_path, said):
    (tmp_path / "run.json").write_text(said)
    for name in ("config.yaml", "last.ckpt", "results.md"):
        (tmp_path / name).write_text("mine")
    nothing_is_touched(tmp_path, "config.yaml")


def nothing_is_touched(folder, name):
    before = files(folder)
    module = FlowModule(tiny(), Recipe(steps=1, batch_size=10))
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match=f"would write over, got '{name}'.* no run has"):
            run(module, noise_data(), folder, **options)
    assert files(folder) == before


def test_resumed_copy_leaves_the_checkpoint_that_it_was_copied_from(tmp_path):
    """Lightning deletes the checkpoint before, whose place the file names, below the folder."""
    first, copy = tmp_path / "runs/first", tmp_path / "runs"
    recipe, options = Recipe(steps=4, batch_size=10), {"checkpoint_every": 2}
    data = noise_data()
    with pytest.raises(InterruptedError):
        stop = (StopAt(3),)
        run(FlowModule(tiny(), recipe), data, first, callbacks=stop, **options)
    for name in ("run.json", "last.ckpt"):
        (copy / name).write_bytes((first / name).read_bytes())
    before = (first / "last.ckpt").read_bytes()
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        run(FlowModule(tiny(), recipe), data, copy, resume=True, **options)
    assert (first / "last.ckpt").read_bytes() == before
