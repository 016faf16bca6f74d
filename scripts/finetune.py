"""
Fine-tuning, for launchers: `ecgfm finetune` is the same.

    accelerate launch scripts/finetune.py --config finetune_small data=STORE output_dir=OUT [key=value ...]
    torchrun --standalone --nproc_per_node 2 scripts/finetune.py --config finetune_small ... use_cpu=true
"""

import argparse
import sys

from ecgfm_hf.cli.finetune import add_finetune_arguments, run_finetune

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tunes an ECG-FM classifier.")
    add_finetune_arguments(parser)
    sys.exit(run_finetune(parser.parse_args()))
