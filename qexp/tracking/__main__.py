"""`python -m qexp.tracking sync [outputs=FOLDER] [uri=URI]`: log all records on disk that tracking has not seen yet.

outputs: the folder of a sweep's outputs (default: outputs); uri: where to log, instead of where each run was told to,
also those of tracking=none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from qexp.tracking.sync import Tracking, sync

DEFAULT = Path(__file__).parents[2] / "conf" / "tracking" / "mlflow.yaml"


def main(words: list[str]) -> int:
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if words[:1] != ["sync"] or len(given) != len(words) - 1 or not {*given} <= {"outputs", "uri"}:
        print(__doc__, file=sys.stderr)
        return 2
    outputs = Path(given.get("outputs", "outputs"))
    if not (outputs / "sweeps").is_dir():
        print(f"error: {outputs} holds no sweeps; give outputs=FOLDER.", file=sys.stderr)
        return 1

    def tracking_of(config: dict[str, Any]) -> Tracking:
        if "uri" not in given:
            return instantiate(config)
        composed = OmegaConf.create({"outputs": str(outputs), "tracking": OmegaConf.load(DEFAULT)})
        return instantiate(OmegaConf.merge(composed, {"tracking": {"uri": given["uri"]}}).tracking)

    count, failures = sync(outputs, tracking_of, given.get("uri"))
    print(f"{count} runs are in tracking")
    for failure in failures:
        print(f"not logged: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
