"""Markdown of cards."""

import html


def plain(value: object) -> str:
    """Return a value as one line of plain text for a table, heading or code span of Markdown.

    Names, licences and figures may come with a dataset or model from outside: they add no row, link, code or HTML.
    """
    text = html.escape(" ".join(str(value).split()), quote=False)
    return "".join(f"&#{ord(letter)};" if letter in "|`[#" else letter for letter in text)
