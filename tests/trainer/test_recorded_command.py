"""What a manifest tells of where a run came from."""

import sys

import pytest

from bitnetctl.trainer import provenance


@pytest.mark.parametrize(
    ("program", "recorded"),
    [("/home/me/venv/bin/bitnetctl", "bitnetctl"), ("/src/bitnetctl/__main__.py", "bitnetctl"), ("my.py", "my.py")],
)
def test_the_command_does_not_tell_where_the_program_lies(
    program: str, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "--seed", "3"])
    assert provenance.environment.__wrapped__()["command"] == [recorded, "train", "--seed", "3"]
