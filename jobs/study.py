"""Run a study as a Ray job; takes the options of `vig study`.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/study.py study.yaml --out /shared/...

--out is a folder that all machines see.

The job is idempotent: submitted again after a failure, it does what is left.
"""

import os
import sys

# A script's own folder comes first on sys.path, where select.py would stand in for Python's module of that name.
sys.path = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]

from vig_ray.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["study", "--address", "auto", *sys.argv[1:]])
