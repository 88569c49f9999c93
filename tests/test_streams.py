"""Output on terminals of every encoding, and standard streams that are closed."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnetctl.streams import prepare_streams, redirect_to_null


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("utf-8", "2–3 × → … \u2800⣿ é", "2–3 × → … \u2800⣿ é"),
        ("ascii", "2–3 × 4 → 5 … “x” ≤ ±1", '2-3 x 4 -> 5 ... "x" <= +-1'),
        ("ascii", "┌─┐│└┘━╸ █▁ ⣿\u2800| ² é ᵀ 中", "+-+|++-- #_ * | 2 e T ?"),
        ("latin-1", "2–3 × 4 ² é →", "2-3 × 4 ² é ->"),
        ("cp1252", "2–3 … • → ≤", "2–3 … • -> <="),
        # undecodable bytes of a file name
        ("utf-8", os.fsdecode(b"a\xff\xfe.csv"), "a\\xff\\xfe.csv"),
        ("ascii", os.fsdecode(b"a\xff.csv"), "a\\xff.csv"),
    ],
)
def test_what_an_encoding_lacks_is_replaced(
    encoding: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(written, encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, name, stream)
        prepare_streams()
        stream.write(text)
        stream.flush()
        assert written.getvalue().decode(encoding) == shown
        written.seek(0)
        written.truncate()
        stream.detach()


@pytest.mark.skipif(sys.platform == "win32", reason="streams are inherited in another way")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_the_null_device(tmp_path: Path, closed: str) -> None:
    code = (
        "from bitnetctl.streams import prepare_streams; prepare_streams(); import sys;"
        "print('x'); print('x', file=sys.stderr); sys.stdin.read();"
        "file = open('made', 'w'); file.write(str(file.fileno())); file.close()"
    )
    command = f'{sys.executable} -c "{code}" {closed}'
    done = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, stdin=subprocess.DEVNULL, check=False, timeout=60)
    assert done.returncode == 0
    # no file has the number of a standard stream, into which a library may print
    assert int((tmp_path / "made").read_text()) > 2


def test_what_has_no_descriptor_is_left_alone() -> None:
    redirect_to_null(None)
    redirect_to_null(io.StringIO())
