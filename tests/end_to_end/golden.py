"""Write the golden scores anew: `python -m tests.end_to_end.golden DIR`, DIR holding the scores of the held-out demo.

python -c "from vig_ray.demo import world; world.write('DIR/data', 2000, 20000)"
vig score --data DIR/data/data.json --model vig_ray/demo/checkpoint --out DIR --blur opencv
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.end_to_end.conftest import read_scores
from tests.end_to_end.test_demo_truth import GOLDEN, GOLDEN_FAST, fast_gains
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_formatter, load_model


def main() -> None:
    scored = [row for row in read_scores(sys.argv[1]) if row["vig"] is not None]
    golden = {}
    for row in scored[:: len(scored) // 64][:64]:
        kept = {"token_ids": row["token_ids"], "vig": round(row["vig"], 7)}
        for name in ("clean_logprobs", "blur_logprobs"):
            kept[name] = [round(value, 6) for value in row[name]]
        golden[row["sample_key"]] = kept
    GOLDEN.write_text(json.dumps(golden, indent=0) + "\n")
    model = load_model(CHECKPOINT, dtype="float32", device="cpu")
    gains = fast_gains(Path(sys.argv[1]), load_formatter(CHECKPOINT), model)
    GOLDEN_FAST.write_text(json.dumps({key: round(gain, 7) for key, gain in gains.items()}, indent=0) + "\n")


if __name__ == "__main__":
    main()
