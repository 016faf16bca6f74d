"""
Several processes: their updates are those of one process, and a killed run continues to bit-equal weights.

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

import numpy as np
import pytest
import torch
from tiny_pretraining import MODEL

NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout", "feat_quantizer_dropout"), 0.0)
PLAIN = {**MODEL, **NO_DROPOUT, "diversity_loss_weight": 0.0, "cmsc_loss_weight": 0.0}
MASKED = 60
pytestmark = pytest.mark.slow  # processes of torchrun, each of which imports torch and transformers

# Long enough for a signal to arrive before the end.
LONGER = {"num_train_epochs": 6, "save_strategy": "steps", "save_steps": 2}


# ----------------------------------------------------------------------------------------------------------------------
# What each process does
# ----------------------------------------------------------------------------------------------------------------------


def given_by_recording(updater):
    """Masks, negatives and noise that each segment brings along, whatever batch it is in."""

    def generator(recording, what):
        return torch.Generator().manual_seed(sum(map(ord, recording + what)))

    def mask(kind, number, index, batch):
        # Of each segment, as both of a pair have the recording's.
        rows = []
        for recording in batch.recording_ids:
            for half in "01":
                chosen = torch.randperm(156, generator=generator(recording, half))[:MASKED]
                rows.append(torch.zeros(156, dtype=torch.bool).index_fill(0, chosen, True))
        return torch.stack(rows)

    def forward_loss(model, bare, batch, mask, across):
        negatives, noise = [], []
        for recording in batch.recording_ids:
            for half in "01":
                random = generator(recording, half + "n")
                drawn = torch.randint(MASKED - 1, (MASKED, 10), generator=random)
                negatives.append(drawn + (drawn >= torch.arange(MASKED)[:, None]))
                uniform = torch.rand(MASKED, 2, 8, generator=random).clamp(1e-6, 1 - 1e-6)
                noise.append(-(-uniform.log()).log())
        return model(
            batch.input_values,
            mask_time_indices=mask,
            sampled_negative_indices=torch.stack(negatives),
            gumbel_noise=torch.stack(noise),
            patient_ids=batch.ids,
            segment_ids=batch.segment_ids,
        )

    import ecgfm_hf.training.objective as update

    update.forward_loss = forward_loss
    updater.mask = mask


def first_gradient(settings, given):
    """Name to gradient of a run's first update; and its metrics."""
    import ecgfm_hf.training.objective as update
    from ecgfm_hf.training import Pretrainer
    from ecgfm_hf.training.objective import forward_loss
    from ecgfm_hf.training.pretraining_data import train_batches

    trainer = Pretrainer(settings)
    updater, accelerator = trainer.updater, trainer.accelerator
    batches = train_batches(trainer.train_data, settings, 0, 0, accelerator.process_index, accelerator.num_processes)
    found = {}

    class Recording:
        param_groups = updater.optimizer.param_groups

        def step(self):
            if accelerator.sync_gradients:
                found.update(
                    {name: p.grad.clone() for name, p in updater.bare.named_parameters() if p.grad is not None}
                )

        def zero_grad(self):
            pass

    updater.optimizer = Recording()
    try:
        if given:
            given_by_recording(updater)
        metrics, _ = updater.update(0, [next(batches) for _ in range(settings.gradient_accumulation_steps)])
    finally:
        update.forward_loss = forward_loss
    return found, metrics, accelerator.num_processes


def main(folder):
    """One process of torchrun's: all that needs several processes and no kill."""
    import datasets
    from accelerate.state import AcceleratorState

    from ecgfm_hf.training import Pretrainer, PretrainSettings

    datasets.disable_progress_bars()
    Pretrainer(PretrainSettings(**json.loads((folder / "whole.json").read_text()))).run()
    AcceleratorState._reset_state()
    for name, changes in json.loads((folder / "cases.json").read_text()).items():
        found = first_gradient(PretrainSettings(**changes["settings"]), changes["given"])
        if os.environ["RANK"] == "0":
            torch.save(found, folder / f"{name}.pt")
    settings = json.loads((folder / "sharded.json").read_text())
    for name, sharded, updates in (("plain", False, 4), ("sharded", True, 4), ("cut", True, 2), ("cut", True, 4)):
        changes = {"output_dir": str(folder / name), "max_steps": updates}
        with sharding() if sharded else contextlib.nullcontext():
            AcceleratorState._reset_state()
            Pretrainer(PretrainSettings(**settings | changes)).run()


@contextlib.contextmanager
def sharding():
    """Has accelerate shard models with FSDP, which by itself it does on GPUs only."""
    from accelerate import DistributedType
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import FullyShardedDataParallelPlugin

    import ecgfm_hf.training.pretraining as pretraining

    build = pretraining.build_accelerator
    before = PartialState._shared_state["distributed_type"]

    def build_sharded(settings):
        accelerator = build(settings)
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=True,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["ECGFMEncoderLayer"],
            state_dict_type="SHARDED_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )
        return accelerator

    pretraining.build_accelerator = build_sharded
    try:
        yield
    finally:
        pretraining.build_accelerator = build
        PartialState._shared_state["distributed_type"] = before


# ----------------------------------------------------------------------------------------------------------------------
# Tests
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A store of 26 pairs, and the environment of processes that read it."""
    from ecgfm_hf.data import load_arrays
    from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS

    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("processes")
    recordings = [
        {
            "recording_id": f"r{n}",
            "signal": np.cumsum(rng.standard_normal((12, 5000)), axis=1).astype(np.float32),
            "sampling_rate": 500,
            "lead_names": STANDARD_LEADS,
            "units": "mV",
        }
        for n in range(26)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        load_arrays(recordings, folder / "store", progress=False)
        yield folder


def base_settings(workplace, **changes):
    return {
        "data": str(workplace / "store"),
        "output_dir": str(workplace / "out"),
        "train_split": "all",
        "valid_split": None,
        "model": MODEL,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "logging_steps": 1,
        **changes,
    }


def environment(workplace):
    return {
        **os.environ,
        "HF_DATASETS_CACHE": str(workplace / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }


def torchrun(processes, *arguments):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *arguments]


CASES = {
    # Everything as in training, with dropout and all parts of the loss.
    "weighted": {"settings": {}, "given": False},
    "given": {"settings": {"model": PLAIN}, "given": True},
    "across": {
        "settings": {"model": MODEL, "cmsc_across_processes": True, "gradient_accumulation_steps": 1},
        "given": False,
    },
}


@pytest.fixture(scope="module")
def gradients(workplace):
    """By case: gradient, metrics and number of processes of two processes' first update."""
    cases = {
        name: {"settings": base_settings(workplace, **case["settings"]), "given": case["given"]}
        for name, case in CASES.items()
    }
    (workplace / "cases.json").write_text(json.dumps(cases))
    (workplace / "whole.json").write_text(
        json.dumps(base_settings(workplace, **LONGER, output_dir=str(workplace / "whole2")))
    )
    (workplace / "sharded.json").write_text(json.dumps(base_settings(workplace)))
    command = torchrun(2, __file__, str(workplace))
    done = subprocess.run(command, env=environment(workplace), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {name: torch.load(workplace / f"{name}.pt", weights_only=True) for name in cases}


@pytest.fixture(autouse=True)
def fresh_accelerate():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def assert_close(found, expected):
    """Gradients equal to 1e-6 of their norm as a whole; a single sum over frames is rounded a little more."""
    assert found.keys() == expected.keys()
    differences = torch.cat([(found[name] - gradient).flatten() for name, gradient in expected.items()])
    whole = torch.cat([gradient.flatten() for gradient in expected.values()])
    assert float(differences.norm()) <= 1e-6 * float(whole.norm())
    assert float(differences.abs().max()) <= 1e-5 * float(whole.abs().max())


def test_two_processes_with_two_micro_batches_equal_the_weighted_sum(workplace, gradients):
    from ecgfm_hf.training import Pretrainer, PretrainSettings
    from ecgfm_hf.training.pretraining_data import train_batches

    found, metrics, processes = gradients["weighted"]
    assert processes == 2
    trainer = Pretrainer(PretrainSettings(**base_settings(workplace, gradient_accumulation_steps=4)))
    updater = trainer.updater
    updater.bare.set_gumbel_temperature(updater.bare.gumbel_temperature_at(0))
    batches = train_batches(trainer.train_data, trainer.settings, 0, 0, 0, 1)
    weighted, counts = [], []
    for index, batch in zip(range(4), batches, strict=False):
        mask = updater.mask("train", 0, index, batch)
        output, _ = updater.forward("train", 0, index, batch, mask)
        counts.append(int(mask.sum()))
        weighted.append(counts[-1] * output.loss)
    assert len(set(counts)) > 1
    loss = sum(weighted) / sum(counts)
    loss.backward()
    assert_close(found, {name: parameter.grad for name, parameter in updater.bare.named_parameters()})
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_with_all_that_is_drawn_given_they_equal_one_big_batch(workplace, gradients):
    from ecgfm_hf.training import PretrainSettings

    found, metrics, _ = gradients["given"]
    settings = PretrainSettings(
        **base_settings(workplace, model=PLAIN, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    )
    expected, one, processes = first_gradient(settings, given=True)
    assert processes == 1
    assert_close(found, expected)
    for part in ("loss", "contrastive_loss", "feature_penalty", "contrastive_accuracy"):
        assert metrics[part] == pytest.approx(one[part], rel=1e-5), part
    assert found["project_q.weight"].abs().max() > 1e-4


def test_cmsc_across_processes_is_that_of_one_batch_with_its_gradient(workplace, gradients):
    from ecgfm_hf.training import Pretrainer, PretrainSettings
    from ecgfm_hf.training.pretraining_data import train_batches

    found, metrics, _ = gradients["across"]
    trainer = Pretrainer(PretrainSettings(**base_settings(workplace)))
    updater, model = trainer.updater, trainer.updater.bare
    model.set_gumbel_temperature(model.gumbel_temperature_at(0))
    batches = train_batches(trainer.train_data, trainer.settings, 0, 0, 0, 1)
    total, count, embeddings, ids, halves = 0.0, 0, [], [], []
    for index, batch in zip(range(2), batches, strict=False):
        mask = updater.mask("train", 0, index, batch)
        output, _ = updater.forward("train", 0, index, batch, mask)
        total = total + int(mask.sum()) * (output.loss - output.cmsc_loss)
        count += int(mask.sum())
        embeddings.append(output.pooler_output)
        ids.append(batch.ids)
        halves.append(batch.segment_ids)
    cmsc = model._cmsc_loss(torch.cat(embeddings), torch.cat(ids), torch.cat(halves))
    loss = total / count + cmsc
    loss.backward()
    assert_close(found, {name: parameter.grad for name, parameter in model.named_parameters()})
    assert metrics["cmsc_loss"] == pytest.approx(cmsc.item(), rel=1e-5)


def test_sharded_training_is_that_of_whole_models_and_continues_to_bit_equal_weights(workplace, gradients):
    from safetensors.torch import load_file

    plain, sharded, cut = (load_file(workplace / n / "model.safetensors") for n in ("plain", "sharded", "cut"))
    for name, weight in plain.items():
        torch.testing.assert_close(sharded[name], weight, rtol=0, atol=1e-6)
        assert torch.equal(cut[name], sharded[name]), name
    checkpoint = workplace / "sharded" / "checkpoints" / "step-00000004"
    assert (checkpoint / "engine").is_dir()
    assert not (checkpoint / "optimizer.pt").exists()
    lines = [json.loads(line) for line in (workplace / "sharded" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["gradient_norm"] > 0 for line in lines)


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
    deadline = time.monotonic() + 600
    while not (metrics.is_file() and f'"update": {update},' in metrics.read_text()):
        assert running.poll() is None, running.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in descendants(running.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    running.communicate(timeout=600)
    return running.returncode


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds a launcher's processes in /proc")
@pytest.mark.parametrize(("processes", "update"), [(1, 5), (2, 4)])
def test_a_killed_run_continues_to_bit_equal_weights(workplace, gradients, tmp_path, processes, update):
    from safetensors.torch import load_file

    from ecgfm_hf.training import Pretrainer, PretrainSettings

    settings = base_settings(workplace, **LONGER, output_dir=str(tmp_path / "killed"), dataloader_num_workers=1)
    recipe = tmp_path / "recipe.json"  # JSON is YAML.
    recipe.write_text(json.dumps(settings))
    script = str(Path(__file__).parent.parent / "scripts" / "pretrain.py")
    arguments = [script, "--config", str(recipe), f"processes={processes}"]
    command = torchrun(processes, *arguments) if processes > 1 else [sys.executable, *arguments]
    env, metrics = environment(workplace), tmp_path / "killed" / "metrics.jsonl"
    signal_at(command, env, metrics, update, signal.SIGKILL)
    if processes == 1:
        # As Ctrl-C in a terminal, which reaches the workers too.
        assert signal_at(command, env, metrics, update + 2, signal.SIGINT) == 128 + signal.SIGINT
    left = max(path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*"))
    before = load_file(tmp_path / "killed" / "checkpoints" / left / "model.safetensors")
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    if processes == 1:
        whole = tmp_path / "whole"
        Pretrainer(PretrainSettings(**base_settings(workplace, **LONGER, output_dir=str(whole)))).run()
        rest = Pretrainer(PretrainSettings(**settings))
        assert f"resuming at update {int(left[5:])}" in rest.describe()
        assert rest.run().finished
    else:
        whole = workplace / "whole2"
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert f"resuming at update {int(left[5:])}" in done.stdout
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "killed", whole))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(before["project_q.weight"], found["project_q.weight"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
