"""Train on a selection as a Ray job; takes the options of `vig train`.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/train.py --model ... --out s3://...

The job is idempotent: submitted again after a failure, it goes on from its last checkpoint.
"""

import sys

from vig_ray.cli import main

if __name__ == "__main__":
    main(["train", "--address", "auto", *sys.argv[1:]])
