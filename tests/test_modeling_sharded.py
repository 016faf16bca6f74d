"""
Weights that are shared out among processes: FSDP through accelerate, and DeepSpeed ZeRO-3, on CPUs.

Run as a script (by torchrun), this file is one of two processes.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # processes of torchrun, each of which imports torch and transformers
LEARNING_RATE = 0.1
needs_fsdp_version = pytest.mark.skipif(
    "fsdp_version" not in FullyShardedDataParallelPlugin.__dataclass_fields__, reason="accelerate has no FSDP 2"
)


def make_model():
    from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    convolutions = {"conv_dim": [16] * 4, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    no_dropout = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout"), 0.0)
    labels = {"num_labels": 3, "problem_type": "single_label_classification"}
    return ECGFMForMultiLabelClassification(
        ECGFMConfig(**sizes, **convolutions, **no_dropout, **labels, mask_time_prob=0.0)
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 12, 800, generator=generator), torch.tensor([0, 1, 2, 1])


def train(model, optimizer, rows, backward):
    """Two updates on these rows of the batch."""
    inputs, labels = batch()
    for _ in range(2):
        backward(model(inputs[rows], labels=labels[rows]).loss)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logits(model):
    model.eval()  # DeepSpeed's returns nothing
    return model(batch()[0]).logits


def fsdp(version, folder):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["ECGFMEncoderLayer"],
        state_dict_type="FULL_STATE_DICT",
        use_orig_params=True if version == 1 else None,
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # accelerate runs DDP on CPUs, whatever the plugin; its FSDP code runs there nevertheless.
    for state in (PartialState, AcceleratorState):
        state._shared_state.update(distributed_type=DistributedType.FSDP, device=torch.device("cpu"))
    accelerator.state.fsdp_plugin = plugin
    model = make_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    rank = accelerator.process_index
    train(model, optimizer, slice(2 * rank, 2 * rank + 2), accelerator.backward)
    found = logits(model)
    # A process keeps about half of the weights.
    total = sum(one.numel() for one in make_model().parameters())
    own = sum((one.to_local() if hasattr(one, "to_local") else one).numel() for one in model.parameters())
    assert own < 0.7 * total, f"{own} of {total} weights"
    if version == 2:
        state = accelerator.get_state_dict(model)
        accelerator.unwrap_model(model).save_pretrained(
            folder / "saved", state_dict=state, is_main_process=rank == 0, save_function=accelerator.save
        )
    return rank, found


def zero_3(folder):
    import deepspeed

    deepspeed.init_distributed("gloo")
    rank = torch.distributed.get_rank()
    model = make_model()
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "gradient_clipping": 0.0,  # 1.0 otherwise
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    assert sum(one.numel() for one in model.parameters()) == 0, "the weights are shared out"
    inputs, labels = (values[2 * rank : 2 * rank + 2] for values in batch())
    for _ in range(2):
        engine.backward(engine(inputs, labels=labels).loss)
        engine.step()
    found = logits(engine)
    state = engine._zero3_consolidated_16bit_state_dict()
    if rank == 0:
        model.save_pretrained(folder / "saved", state_dict=state)
    return rank, found


def run(how, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run([*command, how, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def expected():
    model = make_model()
    train(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE), slice(None), lambda loss: loss.backward())
    return logits(model)


def check(how, tmp_path, saves):
    from ecgfm_hf import ECGFMForMultiLabelClassification

    run(how, tmp_path)
    whole = expected()
    assert (whole - logits(make_model())).abs().max() > 1e-3, "two updates change the scores"
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), whole, atol=1e-5, rtol=0)
    if saves:
        saved = ECGFMForMultiLabelClassification.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(logits(saved), whole, atol=1e-5, rtol=0)


@needs_fsdp_version
def test_fsdp_trains_and_saves_as_one_process_does(tmp_path):
    check("fsdp-2", tmp_path, saves=True)


@needs_fsdp_version
def test_the_first_version_of_fsdp_trains_as_one_process_does(tmp_path):
    # torch's own code crashes where it collects these weights on a CPU, of any model.
    check("fsdp-1", tmp_path, saves=False)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed, which no extra installs")
def test_deepspeed_zero_3_trains_and_saves_as_one_process_does(tmp_path):
    check("zero-3", tmp_path, saves=True)


if __name__ == "__main__":
    how, folder = sys.argv[1], Path(sys.argv[2])
    rank, found = zero_3(folder) if how == "zero-3" else fsdp(int(how[-1]), folder)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
