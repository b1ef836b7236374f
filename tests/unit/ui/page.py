"""A page as a browser would take it apart."""

from __future__ import annotations

from html.parser import HTMLParser


class Parsed(HTMLParser):
    """Texts, links, forms; and what a page must not have: scripts, styles and handlers of its own."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str] = []
        self.rows: list[str] = []
        self.posts: list[str] = []
        self.fields: dict[str, str] = {}
        self.own: list[str] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.append(given.get("href", ""))
        if tag == "tr" and "id" in given:
            self.rows.append(given["id"])
        if tag == "form" and given.get("method") == "post":
            self.posts.append(given["action"])
        if tag in ("input", "textarea") and "name" in given:
            self.fields[given["name"]] = given.get("value", "")
        if tag == "style" or (tag == "script" and not given.get("src")):
            self.own.append(tag)
        self.own += [name for name in given if name == "style" or name.startswith("on")]
        self.own += [value for value in given.values() if value.startswith("javascript:")]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.texts)
