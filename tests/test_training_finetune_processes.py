"""
Several processes fine-tune as one does, and a killed run continues to bit-equal weights.

Run as a script (by torchrun), this file is one of those processes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from finetune_cases import TINY_MODEL, make_store
from transformers import TrainerCallback

pytestmark = pytest.mark.slow  # processes of torchrun, each of which imports torch and transformers

# Long enough for a signal to arrive before the end; with dropout, whose draws have to come back.
LONGER = {
    "num_train_epochs": 6,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "per_device_train_batch_size": 4,
    "model": {**TINY_MODEL, "hidden_dropout": 0.1, "activation_dropout": 0.1, "attention_dropout": 0.1},
    "augmentations": {"random_lead_masking": {"p": 0.3}},
    "early_stopping_patience": 100,
    "freeze_encoder": 3,
}
# Two updates an epoch, the second one with less than the first: 28 and 20 of 48 segments.
GRADIENTS = {"num_train_epochs": 1, "learning_rate": 0.0, "valid_split": None}


class KeepGradients(TrainerCallback):
    """The gradient of each update, by name."""

    def __init__(self, model):
        self.model, self.found = model, []

    def on_pre_optimizer_step(self, args, state, control, **_):
        self.found.append({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})


def gradients_of(settings):
    """The gradients of a run with a learning rate of 0, in float64, where sums in another order are the same."""
    from ecgfm_hf.training import Finetuner

    finetuner = Finetuner(settings)
    trainer = finetuner.trainer
    trainer.model.double()
    keep = KeepGradients(trainer.model)
    trainer.add_callback(keep)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return keep.found, losses, trainer.accelerator.num_processes


def main(folder):
    """One process of torchrun's."""
    import datasets

    from ecgfm_hf.training import Finetuner, FinetuneSettings

    datasets.disable_progress_bars()
    found = gradients_of(FinetuneSettings(**json.loads((folder / "gradients.json").read_text())))
    if os.environ["RANK"] == "0":
        torch.save(found, folder / "gradients.pt")
    Finetuner(FinetuneSettings(**json.loads((folder / "whole.json").read_text()))).run()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A store, and what two processes made of it."""
    folder = tmp_path_factory.mktemp("finetune_processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        make_store(folder / "store", patients=20, fractions={"train": 0.6, "valid": 0.2, "test": 0.2})
        two = base_settings(
            folder,
            **GRADIENTS,
            output_dir=str(folder / "g2"),
            per_device_train_batch_size=7,
            gradient_accumulation_steps=2,
        )
        (folder / "gradients.json").write_text(json.dumps(two))
        (folder / "whole.json").write_text(
            json.dumps(base_settings(folder, **LONGER, output_dir=str(folder / "whole2")))
        )
        command = torchrun(2, __file__, str(folder))
        done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        yield folder


def base_settings(folder, **changes):
    return {
        "data": str(folder / "store"),
        "output_dir": str(folder / "out"),
        "model": TINY_MODEL,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "logging_steps": 1,
        **changes,
    }


def environment(folder):
    here = Path(__file__).parent
    return {
        **os.environ,
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{here.parent}{os.pathsep}{here}",
    }


def torchrun(processes, *arguments):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *arguments]


def test_two_processes_with_two_micro_batches_have_the_gradient_of_one_batch(workplace):
    from ecgfm_hf.training import FinetuneSettings

    found, losses, processes = torch.load(workplace / "gradients.pt", weights_only=True)
    assert processes == 2
    settings = base_settings(workplace, **GRADIENTS, output_dir=str(workplace / "g1"), per_device_train_batch_size=28)
    expected, expected_losses, one = gradients_of(FinetuneSettings(**settings))
    assert one == 1
    assert len(found) == len(expected) == 2
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        whole = torch.cat([gradient.flatten() for gradient in theirs.values()])
        apart = torch.cat([(ours[name] - gradient).flatten() for name, gradient in theirs.items()])
        assert float(whole.norm()) > 1e-3
        assert float(apart.norm()) <= 1e-6 * float(whole.norm())


def descendants(pid):
    """A process and all that it started."""
    found = [pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # It has ended.
            if parent == pid:
                found += descendants(int(entry.name))
    return found


def signal_at(command, env, metrics, update, number):
    """Runs a command until it has logged an update, then sends it and all that it started a signal: exit status."""
    running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and f'"update": {update},' in metrics.read_text()):
        assert running.poll() is None, running.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in descendants(running.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    running.communicate(timeout=200)
    return running.returncode


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds a launcher's processes in /proc")
@pytest.mark.parametrize(("processes", "update"), [(1, 9), (2, 7)])
def test_a_killed_run_continues_to_bit_equal_weights(workplace, tmp_path, processes, update):
    from safetensors.torch import load_file

    from ecgfm_hf.training import Finetuner, FinetuneSettings
    from ecgfm_hf.training.run_folder import RunFolder

    def last_checkpoint(folder):
        return RunFolder(FinetuneSettings(**settings | {"output_dir": str(folder)})).checkpoints.latest()

    settings = base_settings(workplace, **LONGER, output_dir=str(tmp_path / "killed"))
    recipe = tmp_path / "recipe.json"  # JSON is YAML.
    recipe.write_text(json.dumps(settings))
    script = str(Path(__file__).parent.parent / "scripts" / "finetune.py")
    arguments = [script, "--config", str(recipe), f"processes={processes}"]
    command = torchrun(processes, *arguments) if processes > 1 else [sys.executable, *arguments]
    env, metrics = environment(workplace), tmp_path / "killed" / "metrics.jsonl"
    signal_at(command, env, metrics, update, signal.SIGKILL)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    left = last_checkpoint(tmp_path / "killed")
    assert left is not None
    if processes == 1:
        # As Ctrl-C in a terminal, which is obeyed after the update, and saved.
        assert signal_at(command, env, metrics, update + 2, signal.SIGINT) == 128 + signal.SIGINT
        whole = tmp_path / "whole"
        Finetuner(FinetuneSettings(**settings | {"output_dir": str(whole)})).run()
        rest = Finetuner(FinetuneSettings(**settings))
        assert "resuming at update " in rest.describe()
        assert rest.run().finished
    else:
        whole = workplace / "whole2"
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert f"resuming at update {int(left.name.rpartition('-')[2])}" in done.stdout
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "killed", whole))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    last = [last_checkpoint(folder) / "model.safetensors" for folder in (tmp_path / "killed", whole)]
    found, expected = map(load_file, last)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    kept = load_file(workplace / "whole2" / "model.safetensors")
    assert kept.keys() == found.keys()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
