"""Escape untrusted text (names of files and runs, messages) for terminals, spreadsheets, Markdown and HTML."""

import html
import re

# characters that begin a formula in a spreadsheet, also in full width, and plain numbers, which may begin with them
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def escape_formula(text: str) -> str:
    """Put an apostrophe in front of text that a spreadsheet would run as a formula; a number stays unchanged."""
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def printable(text: str) -> str:
    """Replace unprintable characters, such as terminal control sequences."""
    return "".join(character if character.isprintable() else "�" for character in text)


def visible(text: str, line_end: str = "\n", *, keep: str = "") -> str:
    """Return text with unprintable characters as escapes, such as `\\x1b`, and line ends as `line_end`.

    Those of `keep` stay as they are.
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else line_end
        if character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def markdown_text(text: str) -> str:
    """Return text that Markdown shows unchanged, in a table cell too."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def markdown_cell(text: str) -> str:
    """Return text for a cell of a Markdown table, which may be pasted into a spreadsheet."""
    return markdown_text(escape_formula(text))


def markdown_line(text: str) -> str:
    """Return text that stays one line and one cell without HTML; other Markdown, such as emphasis, is kept."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def html_text(text: object) -> str:
    """Return text for an element or a quoted attribute."""
    return html.escape(printable(str(text)))


def html_cell(text: object) -> str:
    """Return text for a cell of an HTML table, which a spreadsheet may open."""
    return html_text(escape_formula(str(text)))
