"""A fine-tuning step of the base model: forward, backward and optimiser, with the published settings."""

import argparse
import json

from .ceiling import timed_shares
from .model import GFLOP_PER_SEGMENT as FORWARD
from .model import run_cases

# The convolutions (0.3 forward) are frozen and have no backward pass; everything else costs twice its forward.
FROZEN_CONVOLUTIONS = 0.3
GFLOP_PER_SEGMENT = 3 * FORWARD["base"] - 2 * FROZEN_CONVOLUTIONS


def run(options: argparse.Namespace) -> int:
    """Prints the figures of every number type and batch size."""
    cases = [
        {
            "name": f"finetune/{dtype}/batch{batch}",
            "dtype": dtype,
            "batch": batch,
            "runs": options.runs,
            "device": options.device,
        }
        for dtype in options.dtypes
        for batch in options.batch_sizes
    ]
    return run_cases("finetune", cases, options.json)


def measure(case: dict) -> int:
    """Prints one object: a case's figures."""
    import torch

    from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification
    from ecgfm_hf.training import FairseqAdam
    from ecgfm_hf.utils.precision import keep_freed_memory

    kept = keep_freed_memory()
    torch.manual_seed(0)
    config = ECGFMConfig.base(
        num_labels=17,
        mask_time_prob=0.0,
        feature_grad_multiplier=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        activation_dropout=0.1,
        pos_weight=[10.0] * 17,
    )
    model = ECGFMForMultiLabelClassification(config).to(case["device"]).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = FairseqAdam(trainable, lr=1e-6, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    optimizer.allocate_state()
    segments = torch.randn(case["batch"], config.num_leads, 2500, device=case["device"])
    labels = (torch.rand(case["batch"], config.num_labels, device=case["device"]) < 0.2).float()

    def step() -> None:
        with torch.autocast(
            case["device"].partition(":")[0], dtype=torch.bfloat16, enabled=case["dtype"] == "bfloat16"
        ):
            loss = model(segments, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    figures = timed_shares(step, case["batch"], GFLOP_PER_SEGMENT, case["runs"], case["device"])
    print(
        json.dumps(
            {
                "name": case["name"],
                **figures,
                "trainable_parameters": sum(parameter.numel() for parameter in trainable),
                "threads": torch.get_num_threads(),
                "keeps_freed_memory": bool(kept),
                "torch": torch.__version__,
            }
        )
    )
    return 0
