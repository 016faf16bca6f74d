"""
Pretraining, for launchers: `ecgfm pretrain` is the same.

    accelerate launch scripts/pretrain.py --config pretrain_base data=STORE output_dir=OUT [key=value ...]
    torchrun --standalone --nproc_per_node 2 scripts/pretrain.py --config pretrain_tiny ... use_cpu=true
"""

import argparse
import sys

from ecgfm_hf.cli.pretrain import add_pretrain_arguments, run_pretrain

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pretrains ECG-FM with W2V + CMSC + RLM.")
    add_pretrain_arguments(parser)
    sys.exit(run_pretrain(parser.parse_args()))
