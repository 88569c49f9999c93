"""Text of others made harmless for terminals and spreadsheets."""

import re

# what spreadsheets take for the beginning of a formula, also in full width, and plain numbers, which they may
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def defused(text: str) -> str:
    """Return the text of a cell with an apostrophe in front where a spreadsheet would run it; a number stays one."""
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: a file's name may hold anything."""
    return "".join(character if character.isprintable() else "�" for character in text)
