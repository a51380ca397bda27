"""Small changes of C++ sources: another comparison, another constant, + for -, && for ||, << for >>."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("csrc/cpu", "csrc/cuda")
LEFT_OUT = {
    "isa.cpp": "which instructions a CPU has cannot be tested on one CPU",
    "scratch.cpp": "allocates; its constants are alignments and sizes of pages",
}

# The formatter puts spaces around binary operators and none within template brackets.
SWAPS = {
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " && ": " || ",
    " || ": " && ",
    " + ": " - ",
    " - ": " + ",
    " << ": " >> ",
    " >> ": " << ",
}
OPERATOR = re.compile("|".join(re.escape(part) for part in SWAPS))
NUMBER = re.compile(r"(?<![\w.#])(\d+)(u?)(?![\w.])")
COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
# Not code that runs: the preprocessor's lines and its continuations, assertions at compile time, template heads,
# aliases and hints to the compiler.
INERT = re.compile(r"\s*(#|static_assert|template <|using |extern )|.*(\\$|__launch_bounds__|__attribute__)")


@dataclass(frozen=True)
class Mutant:
    """One change: the characters of ``file`` from ``start`` on that are ``before`` become ``after``."""

    file: str
    line: int
    start: int
    before: str
    after: str
    text: str  # of the file

    @property
    def key(self) -> str:
        """Names the change for as long as the file stays as it is."""
        content = hashlib.sha256(self.text.encode()).hexdigest()[:12]
        return f"{self.file}:{self.line}:{self.start}:{self.before.strip()}->{self.after.strip()}:{content}"

    def apply(self, text: str) -> str:
        """The changed file."""
        return text[: self.start] + self.after + text[self.start + len(self.before) :]

    @property
    def diff(self) -> str:
        before = self.text.splitlines()[self.line - 1]
        after = self.apply(self.text).splitlines()[self.line - 1]
        return f"- {before.strip()}\n+ {after.strip()}"


def mutants() -> list[Mutant]:
    """All of them, in the order of files and lines."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).iterdir()) if path.name not in LEFT_OUT]
    return [mutant for path in paths for mutant in in_text(str(path.relative_to(ROOT)), path.read_text())]


def in_text(file: str, text: str) -> Iterator[Mutant]:
    """The mutants of one file."""
    code = COMMENT_OR_STRING.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    start, macro = 0, False
    for number, line in enumerate(code.splitlines(keepends=True), 1):
        inert = macro or INERT.match(line)
        macro = line.rstrip().endswith("\\")
        for found in [] if inert else [*OPERATOR.finditer(line), *NUMBER.finditer(line)]:
            after = SWAPS.get(found[0]) or f"{int(found[1]) + 1}{found[2]}"
            yield Mutant(file, number, start + found.start(), found[0], after, text)
        start += len(line)
