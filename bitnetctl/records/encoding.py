"""Encodings and line ends of text files, which editors, shells and version control change."""

import codecs


def decode_text(content: bytes) -> tuple[str | None, bool]:
    """Decode UTF-8 or UTF-16, with or without a byte order mark; return the text and whether it is UTF-16.

    The text is None for anything else.
    """
    encoding = "utf-8-sig"
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        # without a mark: the beginning is ASCII, so that every other byte is 0
        zeros, characters = (content[:200][start::2] for start in ((1, 0) if name == "utf-16-le" else (0, 1)))
        if content.startswith(mark) or (len(content) > 3 and not any(zeros) and all(characters)):
            encoding = name
    try:
        return content.decode(encoding).removeprefix("\ufeff"), encoding != "utf-8-sig"
    except UnicodeDecodeError:
        return None, False


def plain_lines(content: bytes) -> bytes:
    """Return a text in UTF-8 with LF as line ends; what is no text is unchanged."""
    text, _ = decode_text(content)
    return content if text is None else text.replace("\r\n" if "\n" in text else "\r", "\n").encode()


def normal_bytes(content: bytes) -> bytes:
    """Return `plain_lines` with one newline at the end, where there are any."""
    lines = plain_lines(content)
    return lines.rstrip(b"\n") + b"\n" if lines else b""
