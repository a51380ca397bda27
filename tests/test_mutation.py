"""The mutation check (``tests/mutation``) finds what to change, leaves alone what does not run, and sees a mutant die."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutation.mutants import ROOT, in_text, mutants

CODE = """\
// a < b && c == 1
#define LIMIT 3
static_assert(1 + 1 == 2);
template <class T, int N = 4>
const char* text = "a + 1";
for (int64_t i = 0; i < n; ++i) sum += x[i + 7] << 2u;
if (a >= b || c) return;
"""


def test_operators_and_constants_that_run_are_changed_one_at_a_time():
    found = [(m.line, m.before.strip(), m.after.strip()) for m in in_text("f", CODE)]
    assert found == [
        (6, "<", "<="),
        (6, "+", "-"),
        (6, "<<", ">>"),
        (6, "0", "1"),
        (6, "7", "8"),
        (6, "2u", "3u"),
        (7, ">=", ">"),
        (7, "||", "&&"),
    ]
    changed = [m.apply(CODE) for m in in_text("f", CODE)]
    assert len(set(changed)) == len(changed)
    assert next(in_text("f", CODE)).diff.splitlines()[1] == "+ for (int64_t i = 0; i <= n; ++i) sum += x[i + 7] << 2u;"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the mutants with")
def test_a_mutant_is_killed_and_remembered(pytestconfig, tmp_path):
    """One word too many is written: the emulated kernel's array ends before it. Objects are the other tests'."""
    text = (ROOT / "csrc/cuda/mask_bits.cu").read_text()
    line = text[: text.index("if (base + lane < total) words")].count("\n") + 1
    mutant = next(m for m in mutants() if (m.file, m.line, m.before) == ("csrc/cuda/mask_bits.cu", line, " < "))
    folder, results = Path(pytestconfig.cache.mkdir("simt")).parent, tmp_path / "results.jsonl"
    command = [sys.executable, str(ROOT / "tests/mutation/run.py"), "--only", mutant.key]
    command += ["--folder", str(folder), "--results", str(results)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "1 mutants, 1 killed (100.0%), 0 survived" in done.stdout
        assert "KernelFault: kernel pack_kernel" in done.stdout
    assert [json.loads(row)["key"] for row in results.read_text().splitlines()] == [mutant.key]
