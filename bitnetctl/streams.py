"""Standard output and standard error that take every character, whatever the encoding of the terminal."""

import codecs
import contextlib
import io
import os
import sys
import unicodedata
from typing import IO

# what a terminal of another encoding shows for the characters that this package prints
_PLAIN = {
    **dict.fromkeys("–—−─━═╌╍┄┅┈┉╴╶╸╺", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷╹╻▏", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩╇╈┢┪╞╡╪╔╗╚╝╠╣╦╩╬", "+"),
    **dict.fromkeys("▀▌▐▖▗▘▙▚▛▜▝▞▟■●", "#"),
    **dict.fromkeys("•·∙", "*"),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("“”″", '"'),
    # eight heights of a sparkline
    **dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True)),
    **{"→": "->", "←": "<-", "≤": "<=", "≥": ">=", "≠": "!=", "±": "+-", "≈": "~", "×": "x", "∞": "inf"},
    **{"✓": "ok", "✗": "x", "⚠": "!", "λ": "lambda", "η": "eta", "σ": "sigma", "Σ": "sum", "τ": "tau", "μ": "u"},
}
_HANDLER = "bitnetctl.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: by a plain form, a byte that was no text by `\\xff`, anything else by `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_replacement, text)), error.end


def _replacement(character: str) -> str:
    # undecodable bytes of a file name, as os.fsdecode gives them
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"\\x{ord(character) - 0xDC00:02x}"
    if 0x2800 <= ord(character) <= 0x28FF:
        # Braille, of which curves are drawn
        return " " if character == "\u2800" else "*"
    # the letters without their marks: an ellipsis is three dots, a superscript its digit
    similar = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _PLAIN.get(character, similar) or "?"


def prepare_streams() -> None:
    """Open closed standard streams on the null device, and let no character stop the output; called once, first.

    A file opened later would get the number of a closed stream, and what a library prints would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=_HANDLER)


def redirect_to_null(stream: IO[str] | None) -> None:
    """Redirect a stream to the null device, so that flushing it when Python exits cannot fail."""
    if stream is None:
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        # closed, or without a file descriptor: nothing can fail
        pass
