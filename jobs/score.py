"""Score a dataset as a Ray job; takes the options of `vig score`.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/score.py --data s3://... --model ... --out s3://...

The job is idempotent: submitted again after a failure, it goes on where it was.
"""

import sys

from vig_ray.cli import main

if __name__ == "__main__":
    main(["score", "--address", "auto", *sys.argv[1:]])
