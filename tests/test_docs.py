"""The documentation: it is built without a warning, its links lead somewhere, and a browser shows all of it."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
WIDTHS = {"desk": 1280, "phone": 390}

pytestmark = [
    pytest.mark.skipif(which("dot") is None, reason="the pages need Graphviz: apt install graphviz"),
    pytest.mark.xdist_group("docs"),  # they share the built pages
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages; a warning, or code on a page that raises, is an error."""
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", out / "trees"]
    command += [ROOT / "docs", out / "html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


class Page(HTMLParser):
    """What a page refers to, and what of it can be referred to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.refers: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.refers.add(value)
            elif name == "id":
                self.anchors.add(value)


def test_links_lead_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 40
    broken = []
    for path, page in pages.items():
        source = path.is_relative_to(site / "_modules")  # whose links back to the reference are Sphinx's own
        for reference in page.refers:
            parts = urlsplit(reference)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {reference}")
            elif target in pages and not source and unquote(parts.fragment) not in {"", *pages[target].anchors}:
                broken.append(f"{path.relative_to(site)}: no {reference}")
    assert not broken


def test_chapters_open_as_notebooks(site):
    chapters = sorted(path.stem for path in (ROOT / "docs" / "course").glob("[0-9]*.md"))
    assert len(chapters) == 10
    notebooks = {path.stem for path in site.rglob("*.ipynb")}
    assert notebooks.issuperset(chapters)


class Quiet(SimpleHTTPRequestHandler):
    """The pages, without a line for each, over connections that stay open."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # of 5, the default, a browser that opens many connections at once can lose some


@pytest.fixture(scope="module")
def address(site):
    """Where the pages are served."""
    with Server(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium."""
    chromium, driver = which("chromium"), which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium: apt install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def look(browser, width, scheme="light"):
    """Pages are seen in a window of this width from now on."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_pages_in_a_browser(width, site, address, browser):
    """No page is wider than the window, no picture is missing, no script fails."""
    look(browser, width)
    wrong = []
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        if name.startswith("_modules/"):
            continue
        browser.get(f"{address}/{name}")
        size = browser.execute_script("return document.documentElement.scrollWidth")
        if size > width:
            wrong.append(f"{name}: {size} pixels wide")
        missing = browser.execute_script(
            "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        )
        wrong += [f"{name}: {source} is not shown" for source in missing]
        # Pages ask for /favicon.ico, which there is not.
        wrong += [f"{name}: {e['message']}" for e in browser.get_log("browser") if "favicon" not in e["message"]]
    assert not wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme, address, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    def colours(page):
        """Sums of red, green and blue; none while the page has no style, and so no background."""
        found = page.execute_script("let s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
        opaque = [re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour) for colour in found]
        return all(opaque) and [sum(map(int, colour.groups())) for colour in opaque]

    look(browser, 1280, scheme)
    browser.get(f"{address}/index.html")
    background, text = WebDriverWait(browser, 20).until(colours, str(browser.get_log("browser")))
    assert (background > text) == (scheme == "light")
    assert abs(background - text) > 3 * 120


@pytest.mark.parametrize("words", ["clip_grad_norm_", "zoneout", "vanishing"])
def test_search_finds(words, address, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    look(browser, 1280)
    browser.get(f"{address}/search.html?q={words}")
    WebDriverWait(browser, 20).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#search-results li a"))
