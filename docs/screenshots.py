"""Pictures of the report's page for the documentation, taken by the system's own Chromium: `make screenshots`."""

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dream import config
from dream.report import page
from dream.report.results import cells

FOLDER = Path(__file__).parent / "screenshots"
SIZES = {"light": (1280, 860), "dark": (1280, 860), "phone": (400, 860)}
PATIENCE = 600_000  # milliseconds


def top(_: Page) -> None:
    """The verdict, as the page opens."""


def curve(tab: Page) -> None:
    """The learning curves."""
    tab.evaluate("location.hash = '#figures'")


def explorer(tab: Page) -> None:
    """The queries of the last task that got better, the first of them open."""
    tab.evaluate("location.hash = '#queries'")
    tab.locator("select[name=task]").select_option(index=tab.locator("select[name=task] option").count() - 1)
    tab.select_option("select[name=outcome]", "better")
    tab.locator("details.change:visible summary").first.click()


VIEWS: tuple[Callable[[Page], None], ...] = (top, curve, explorer)


def main() -> None:
    """Write docs/screenshots/<view>-<size>.png, each with 256 colours."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("error: no browser. apt-get install chromium")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        file = Path(folder, "page.html")
        file.write_text(page.html(cells.load(config.load())), encoding="utf-8")
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE)
        for size, (width, height) in SIZES.items():
            scheme = "dark" if size == "dark" else "light"
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            tab.set_default_timeout(PATIENCE)
            tab.goto(file.as_uri())
            for view in VIEWS:
                view(tab)
                tab.wait_for_timeout(500)  # the contents list follows
                picture = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
                picture.quantize(256).save(FOLDER / f"{view.__name__}-{size}.png", optimize=True)
            tab.close()
        browser.close()


if __name__ == "__main__":
    main()
