"""A CSV that was saved anew after its run had ended still has its rows; one that was edited has not."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from rows import shared_folder

from bitnetctl.config import parse_config
from bitnetctl.errors import RecordError
from bitnetctl.records import load_run, read_manifest
from bitnetctl.records.checksum import csv_checksum
from bitnetctl.records.encoding import normal_bytes, plain_lines
from bitnetctl.records.paths import RunPaths
from bitnetctl.records.status import ended
from bitnetctl.records.writer import RecordWriter

FIXTURE = Path(__file__).parents[1] / "fixtures" / "schema-1" / "runs"
RUN = "h4-12-baseline-s0-4d698c"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The CSV of a finished run."""
    shutil.copytree(FIXTURE / RUN, tmp_path / RUN)
    return Path(shutil.copy(FIXTURE / f"{RUN}.csv", tmp_path))


def table(content: bytes) -> list[list[str]]:
    return list(csv.reader(content.decode().splitlines()))


def written(rows: list[list[str]], separator: str = ",") -> bytes:
    return "".join(separator.join(row) + "\n" for row in rows).encode()


SAVED: dict[str, Callable[[bytes], bytes]] = {
    "as it was": lambda content: content,
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "CR": lambda content: content.replace(b"\n", b"\r"),
    "without the last newline": lambda content: content.rstrip(b"\n"),
    "with another newline": lambda content: content + b"\n",
    "with a mark": lambda content: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "tabs": lambda content: content.replace(b",", b"\t"),
    "by pandas": lambda content: written(
        [
            ["", *table(content)[0]],
            *(
                [str(i), *(f"{float(cell)!r}" if cell else "" for cell in row)]
                for i, row in enumerate(table(content)[1:])
            ),
        ]
    ),
    "in another order": lambda content: written([[*row[:1], *row[:0:-1]] for row in table(content)]),
}


@pytest.mark.parametrize("kind", SAVED)
def test_the_same_rows_however_they_are_written(path: Path, kind: str) -> None:
    before = load_run(path)
    path.write_bytes(SAVED[kind](path.read_bytes()))
    run = load_run(path)
    assert run.frame.equals(before.frame)
    assert run.records.torn is None
    manifest = read_manifest(path)
    assert manifest is not None
    assert ended(RunPaths(path.parent, RUN), manifest.config_hash, parse_config(manifest.requested())) is not None


EDITED: dict[str, Callable[[bytes], bytes]] = {
    "a digit": lambda content: content.replace(b"0.1,", b"0.2,", 1),
    "a row less": lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
    "rounded": lambda content: written(
        [[f"{float(cell):.6g}" if cell[:1].isdigit() else cell for cell in row] for row in table(content)]
    ),
    "a cell less": lambda content: content.rstrip(b"\n").rpartition(b",")[0] + b",\n",
}


@pytest.mark.parametrize("kind", EDITED)
def test_other_rows_are_refused(path: Path, kind: str) -> None:
    path.write_bytes(EDITED[kind](path.read_bytes()))
    with pytest.raises(
        RecordError, match=r"damaged or edited since the run ended \(checksum differs.*\); put back the file"
    ):
        load_run(path)
    copy = path.with_suffix("") / "checkpoints" / "step-6" / "records.csv"
    copy.parent.mkdir(parents=True)
    copy.touch()
    with pytest.raises(RecordError, match=f"{copy.name} is a copy of its first rows"):
        load_run(path)


@shared_folder
@given(st.text(st.sampled_from("ab,\n1.")), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_line_ends_and_encodings_change_no_checksum(tmp_path: Path, text: str, end: str, encoding: str) -> None:
    plain, other = tmp_path / "plain.csv", tmp_path / "other.csv"
    plain.write_bytes(text.encode())
    other.write_bytes(text.replace("\n", end).encode(encoding))
    assert csv_checksum(plain) == csv_checksum(other)
    assert normal_bytes(normal_bytes(text.encode())) == normal_bytes(text.encode())


def test_what_is_no_text_is_its_own_normal_form() -> None:
    assert plain_lines(b"\xff\0\xff") == b"\xff\0\xff"


def test_a_run_resumes_into_a_file_with_other_line_ends(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    writer = RecordWriter(path, content)
    assert writer.had_rows
    writer.open()
    writer.close()
    assert path.read_bytes() == content
