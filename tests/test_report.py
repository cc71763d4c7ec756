"""Pages of reports: what their modules import."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import rayface
from rayface.report import (
    HALF,
    PALETTE,
    Face,
    Listing,
    Plot,
    Row,
    Sheet,
    as_svg,
    load_template,
    new_axes,
    plain,
    write_pngs,
)


def test_import_of_report_and_curves_leaves_pyplot_out():
    code = "import sys, rayface.curves; sys.exit('matplotlib.pyplot' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


EVIL = """<script>document.title='owned'</script><img src=x onerror="document.title='owned'">'"</td>\u202e$\\frac{"""


def test_listing_without_rows_says_that_there_are_none():
    empty = Listing(title="Findings", caption="", columns=["what", "found"], rows=[])
    whole = {"title": "", "table": [], "plots": [], "palette": PALETTE, "config": "", "version": "1", "written": "now"}
    page = load_template("curation.html").render(**whole, listings=[empty], sheets=[])
    assert "<td>none</td>" in page


def hostile_page() -> str:
    """A page with hostile text wherever identity names, keys and names of groups can be."""
    figure, axes = new_axes(HALF, "x", "y")
    axes.set_xticks([0], [plain(EVIL)])
    plot = Plot(f"4-groups-{EVIL}", EVIL, figure)
    face = Face(key=EVIL, caption=EVIL, jpeg="AA==")
    row = Row(who=EVIL, groups=[[face, Face(key=EVIL)]])
    return load_template("curation.html").render(
        title=EVIL,
        table=[(EVIL, EVIL)],
        plots=[{"caption": plot.caption, "wide": False, "svg": as_svg(plot)}],
        palette=PALETTE,
        config=EVIL,
        listings=[Listing(title=EVIL, caption=EVIL, columns=[EVIL], rows=[[EVIL]])],
        sheets=[Sheet(title=EVIL, caption=EVIL, rows=[row])],
        version="1",
        written="now",
    )


class Tags(HTMLParser):
    """The elements of a page, and the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_page_of_hostile_names_and_keys_has_them_as_text_only():
    page = hostile_page()
    tags = Tags(page)
    assert "script" not in tags.names
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert page.count("&lt;script&gt;") > 10
    assert "\u202e" not in page
    assert "\\u202e" in page


def test_page_of_hostile_names_in_a_browser_runs_none_of_them(tmp_path, browser):
    (tmp_path / "page.html").write_text(hostile_page())
    page = browser(tmp_path / "page.html")
    assert "<title>owned</title>" not in page.dom
    assert not page.console


def test_plot_of_a_hostile_name_is_a_plain_file(tmp_path):
    figure, _ = new_axes(HALF, "x", "y")
    files = write_pngs(tmp_path / "plots", [Plot("../../a<b>", "", figure)])
    assert [path.relative_to(tmp_path).as_posix() for path in files.values()] == ["plots/.._.._a_b_.png"]


def test_only_the_module_of_reports_makes_pages():
    root = Path(rayface.__file__).parent
    assert [path.name for path in root.rglob("*.py") if "jinja2.Environment(" in path.read_text()] == ["report.py"]
