"""Write sparseprune/ops/costs.json anew: ``python -m benchmarks.constants``, after a change of a layer's kernels.

One thread, whose own time other processes do not disturb, and each SIMD level that choices tell apart. A minute.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sparseprune.ops.costs import SHIPPED

LEVELS = ("avx2", "portable")
CALIBRATE = "import sys, torch, sparseprune; torch.set_num_threads(1); sparseprune.calibrate(sys.argv[1])"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {level: _measured(level, Path(folder, f"{level}.json")) for level in LEVELS}
    text = json.dumps(_rounded(found), indent=1)
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
    main()
