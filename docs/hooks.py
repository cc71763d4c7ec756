"""Hook of the documentation's build: links to files of the repository become their paths."""

import posixpath
import re
from typing import Any

_UP = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace every `[text](../path)` that leads out of docs/ by the text; pages are read without the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def shown(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        if not path.startswith("../"):
            return link[0]
        path = path.removeprefix("../")
        return link[1] if link[1].strip("`") in path else f"{link[1]} (`{path}`)"

    return _UP.sub(shown, markdown)
