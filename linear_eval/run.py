"""Score a frozen encoder on labelled sets: `ssmast probe` as a script.

python linear_eval/run.py encoder=runs/mine/encoder data=FOLDER_OF_LABELLED_SETS
python linear_eval/run.py encoder=DIR data=DIR tasks=[fsdd,emodb:group=speaker] out=DIR protocol=knn
python linear_eval/run.py encoder=DIR data=DIR tasks=fsdd:protocol=leave_one_out:speaker
python linear_eval/run.py encoder=log_mel data=DIR                  log-mel statistics, a baseline
python linear_eval/run.py encoder=random_conv data=DIR              a random convolution, another
python linear_eval/run.py encoder=DIR data=DIR baselines=all        the encoder beside all of them
python linear_eval/run.py encoder=DIR data=DIR shuffled=true        a control: must be at chance
accelerate launch --num_processes 8 linear_eval/run.py encoder=...  embed on several GPUs
python linear_eval/run.py --help                                    every key

A labelled set is a folder with metadata.csv (path,label and split of train/valid/test, or fold)
beside the audio files or an uncompressed audio.tar. For each task a JSON file goes to out=, with
results.md and report.html; the table is printed too. Tasks that have a result there are skipped.
"""

import sys

from ssmast.command import run_command
from ssmast.evaluation.suite import main

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="linear_eval/run.py"))
