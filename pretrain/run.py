"""Pretrain an encoder on unlabelled audio (SS-MAST).

accelerate launch pretrain/run.py                                  the smoke recipe, built-in corpus
accelerate launch pretrain/run.py recipe=real_nano data=FOLDER run=runs/mine
accelerate launch pretrain/run.py recipe=real_nano data=FOLDER run=runs/mine resume=auto
accelerate launch --multi_gpu --num_processes 2 pretrain/run.py    two processes, GPU or not
python pretrain/run.py --help                                      every key

Recipes are the YAML files in ssmast/recipes; each says what it needs and what it reaches.
"""

import sys

from ssmast.command import run_command
from ssmast.training.pretrain import main

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="pretrain/run.py"))
