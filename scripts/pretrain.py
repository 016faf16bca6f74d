"""
Pretraining, for launchers: `ecgfm pretrain` is the same.

    accelerate launch scripts/pretrain.py --config pretrain_base data=STORE output_dir=OUT [key=value ...]
    torchrun --standalone --nproc_per_node 2 scripts/pretrain.py --config pretrain_tiny ... use_cpu=true
"""

import sys

from ecgfm_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
