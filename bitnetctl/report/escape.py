"""Foreign text (names of files and runs, messages) made harmless for terminals, spreadsheets, Markdown and HTML."""

import html
import re

# what spreadsheets take for the beginning of a formula, also in full width, and plain numbers, which they may
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def defused(text: str) -> str:
    """Return a cell's text with an apostrophe in front where a spreadsheet would run it; a number stays unchanged."""
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def printable(text: str) -> str:
    """Replace every character that could steer a terminal: a file's name may hold anything."""
    return "".join(character if character.isprintable() else "�" for character in text)


def markdown_text(text: str) -> str:
    """Return text that Markdown shows unchanged, in a table cell too."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def markdown_cell(text: str) -> str:
    """Return text for a cell of a Markdown table, which may be pasted into a spreadsheet."""
    return markdown_text(defused(text))


def markdown_line(text: str) -> str:
    """Return text that stays one line and one cell and holds no HTML; emphasis and links of its author remain."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def html_text(text: object) -> str:
    """Return text for an element or a quoted attribute."""
    return html.escape(printable(str(text)))


def html_cell(text: object) -> str:
    """Return text for a cell of an HTML table, which a spreadsheet may open."""
    return html_text(defused(str(text)))
