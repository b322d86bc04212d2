"""Train a reference model on answer texts as a Ray job; takes the options of `vig train-text`.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/train_text.py --model ... --out s3://...

The job is idempotent: submitted again after a failure, it goes on from its last checkpoint.
"""

import os
import sys

# A script's own folder comes first on sys.path, where select.py would stand in for Python's module of that name.
sys.path = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]

from vig_ray.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["train-text", "--address", "auto", *sys.argv[1:]])
