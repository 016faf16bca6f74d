"""
Fine-tuning, for launchers: `ecgfm finetune` is the same.

    accelerate launch scripts/finetune.py --config finetune_small data=STORE output_dir=OUT [key=value ...]
    torchrun --standalone --nproc_per_node 2 scripts/finetune.py --config finetune_small ... use_cpu=true
"""

import sys

from ecgfm_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
