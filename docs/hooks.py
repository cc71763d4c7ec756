"""Hook of the documentation's build: links to files of the repository become their paths, or the page made of them."""

import posixpath
import re
from typing import Any

_UP = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")

_PAGES = {"recipes": "recipes.md", "rayface/config": "reference/config.md", "rayface/cli": "reference/cli.md"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace every `[text](../path)` that leads out of docs/: pages are read without the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def shown(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        if not path.startswith("../"):
            return link[0]
        path = path.removeprefix("../").rstrip("/")
        if path in _PAGES:
            return f"[{link[1]}]({posixpath.relpath(_PAGES[path], folder or '.')})"
        return link[1] if link[1].strip("`") in path else f"{link[1]} (`{path}`)"

    return _UP.sub(shown, markdown)
