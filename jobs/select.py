"""Select from scores as a Ray job; takes the options of `vig select`.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/select.py --scores s3://... --out s3://...

The job is idempotent: submitted again, it finds its selection finished or makes it again.
"""

import os
import sys

# A script's own folder comes first on sys.path, where this file would stand in for Python's module of that name.
sys.path = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]

from vig_ray.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["select", "--address", "auto", *sys.argv[1:]])
