"""A command line run in this process."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from bitnetctl import cli


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]


def call(*arguments: str | Path) -> Done:
    """Run a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def verify(*arguments: str | Path) -> Done:
    """Judge by the founding document's criteria."""
    return call("verify", *arguments, "--criteria", "origin")
