"""Draw the picture of a report in the README: `docs/report_picture.py demo/run docs/report.png` after `make demo`.

Takes a headless Chromium or Chrome (RAYFACE_BROWSER). The demo's images are drawn, so the picture shows no person.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import cv2

WIDTH, HEIGHT = 1100, 1228  # pixels of the page
SHOWN = 0.7  # size of the picture
MOST_BYTES = 200_000


def screenshot(page: Path, out: Path) -> None:
    """Write a PNG of the top of a page.

    Raises:
        SystemExit: no browser, or the picture has too many bytes for the repository.
    """
    names = (os.environ.get("RAYFACE_BROWSER"), "chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if name and (path := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("RAYFACE_BROWSER: no Chromium or Chrome on PATH")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "page.png"
        place = [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={taken}"]
        subprocess.run([browser, *flags, *place, page.absolute().as_uri()], check=True, capture_output=True)
        picture = cv2.imread(str(taken))
    small = cv2.resize(picture, None, fx=SHOWN, fy=SHOWN, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".png", small, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
    if len(data) > MOST_BYTES:
        raise SystemExit(f"{out}: {len(data):,} bytes, more than {MOST_BYTES:,}")
    out.write_bytes(data)


def main() -> None:
    """Take the picture of a run's report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    screenshot(given.run / "report.html", given.out)


if __name__ == "__main__":
    main()
