"""A pretraining step of the base model: forward, backward and optimiser, with the published settings."""

import argparse
import json

from .ceiling import timed_shares
from .model import run_cases

# Multiply-adds count twice: 29.3 forward, and twice that backward. In bfloat16 the share is of the float32 ceiling too.
GFLOP_PER_SEGMENT = 88.0


def run(options: argparse.Namespace) -> int:
    """Prints the figures of every number type and number of pairs."""
    cases = [
        {
            "name": f"pretrain/{dtype}/pairs{pairs}",
            "dtype": dtype,
            "pairs": pairs,
            "negatives": options.negatives,
            "device": options.device,
            # Large batches are for memory; a step of 32 pairs takes half a minute.
            "runs": options.runs if pairs <= 4 else min(options.runs, 3),
        }
        for dtype in options.dtypes
        for pairs in options.pairs
    ]
    return run_cases("pretrain", cases, options.json)


def measure(case: dict) -> int:
    """Prints one object: a case's figures."""
    import numpy as np
    import torch

    from ecgfm_hf import ECGFMConfig, ECGFMForPreTraining
    from ecgfm_hf.training import FairseqAdam, PretrainSettings, compute_mask_indices
    from ecgfm_hf.utils.precision import keep_freed_memory

    kept = keep_freed_memory()
    torch.manual_seed(0)
    # The defaults are the published ones.
    settings = PretrainSettings()
    config = ECGFMConfig.base(num_negatives=case["negatives"])
    model = ECGFMForPreTraining(config).to(case["device"]).train()
    optimizer = FairseqAdam(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
    )
    optimizer.allocate_state()
    rows, samples = 2 * case["pairs"], 2500
    mask = compute_mask_indices(
        (rows, config.num_frames(samples)),
        config.mask_time_prob,
        config.mask_time_length,
        config.mask_time_min_masks,
        np.random.RandomState(0),
    )
    inputs = {
        "input_values": torch.randn(rows, config.num_leads, samples, device=case["device"]),
        "patient_ids": torch.arange(rows) // 2,
        "segment_ids": torch.arange(rows) % 2,
        "mask_time_indices": torch.from_numpy(mask),
    }

    def step() -> None:
        with torch.autocast(
            case["device"].partition(":")[0], dtype=torch.bfloat16, enabled=case["dtype"] == "bfloat16"
        ):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    figures = timed_shares(step, rows, GFLOP_PER_SEGMENT, case["runs"], case["device"])
    print(
        json.dumps(
            {
                "name": case["name"],
                **figures,
                "negatives": case["negatives"],
                "threads": torch.get_num_threads(),
                "keeps_freed_memory": bool(kept),
                "torch": torch.__version__,
            }
        )
    )
    return 0
