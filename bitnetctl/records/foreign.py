"""What a file is that is given as a CSV and is none."""

import re

_KINDS = (
    (b"PK\x03\x04", "a spreadsheet or a zip, not a CSV; export its sheet as CSV, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet, not a CSV; export its sheet as CSV"),
    (b"\x1f\x8b", "compressed with gzip; unpack it with `gunzip`"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it with `unzstd`"),
    (b"BZh", "compressed with bzip2; unpack it with `bunzip2`"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it with `unxz`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it"),
    (b"PAR1", "a Parquet file, not a CSV; write it as CSV"),
    (b"SQLite format 3\0", "a database, not a CSV; export its table as CSV"),
    (b"%PDF", "a PDF, not a CSV"),
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file; run `git lfs pull`"),
    (b"<<<<<<< ", "two versions of a file with the marks of a merge; keep one and remove the marks"),
    (b"/annex/objects/", "a pointer of git-annex, not the file; run `git annex get`"),
)
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html|\?xml)\b", re.IGNORECASE)


def what_it_is(content: bytes) -> str | None:
    """Return what a file is, by its beginning, and what to do; None where that is not known."""
    known = next((text for beginning, text in _KINDS if content.startswith(beginning)), None)
    if known is None and _WEB_PAGE.match(content.removeprefix(b"\xef\xbb\xbf")):
        return "a web page, not a CSV; download the file itself, signed in where that is asked for"
    if known is None and content and not content.strip(b"\0"):
        return "nothing but NUL bytes: it was not written to the disk; copy it again"
    return known
