"""Running the commands in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from sparseprune.cli import app

SNIP = ["prune", "lenet_300_100", "--criterion", "snip", "--sparsity", "0.95", "--data", "digits"]
MAGNITUDE = ["prune", "lenet_300_100", "--criterion", "magnitude", "--density", "0.1", "--data", "digits"]


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def refused(*arguments):
    """The one sentence on stderr of a refused command."""
    result = invoke(*arguments, code=2)
    assert result.stdout == "" and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr
