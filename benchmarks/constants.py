"""Write sparseprune/ops/costs.json anew: ``python -m benchmarks.constants [LEVEL ...]``, after a change of a layer's
kernels; other levels than those named keep their constants.

One thread, whose own time other processes do not disturb. A level's constants should come from a machine that has no
better one, as the vendor's products do not go down to it. A minute.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseprune.ops.costs import SHIPPED

LEVELS = ("avx512", "avx2", "portable")
CALIBRATE = "import sys, torch, sparseprune; torch.set_num_threads(1); sparseprune.calibrate(sys.argv[1])"


def main(levels: Sequence[str] = LEVELS) -> None:
    found = {} if set(levels) == set(LEVELS) else json.loads(SHIPPED.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for level in levels:
            found[level] = _measured(level, Path(folder, f"{level}.json"))
    text = json.dumps(_rounded({level: found[level] for level in LEVELS if level in found}), indent=1)
    # The constants of a fit on one line.
    SHIPPED.write_text(
        re.sub(r"\[[^\]]*\]", lambda m: " ".join(m[0].split()).replace("[ ", "[").replace(" ]", "]"), text) + "\n"
    )


def _measured(level: str, path: Path) -> dict[str, Any]:
    environment = {**os.environ, "SPARSEPRUNE_CPU_ISA": level, "OMP_NUM_THREADS": "1", "SPARSEPRUNE_COSTS": "shipped"}
    subprocess.run([sys.executable, "-c", CALIBRATE, path], env=environment, check=True)
    return json.loads(path.read_text())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main(sys.argv[1:] or LEVELS)
