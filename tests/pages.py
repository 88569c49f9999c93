"""HTML pages as what a browser reads of them."""

import json
from html.parser import HTMLParser
from typing import Any

HOSTILE = "</script><img src=x onerror=alert(1)>"
VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """Elements, texts and scripts of a page; every element must be closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def data(self) -> Any:
        def refuse(name: str) -> None:
            raise ValueError(name)

        return json.loads(self.scripts[0], parse_constant=refuse)

    def rows(self) -> int:
        return sum("data-run" in attributes for _, attributes in self.tags)
