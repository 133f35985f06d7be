"""The built site in a browser: `make docs`.

Not part of the backends' suites (see `norecursedirs`): it is the same for all.
"""

import functools
import http.server
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest
from playwright import sync_api

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGES = sorted(
    page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")
)
PHONE = 375
# No sandbox: CI runs as root. The rest keeps the browser from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What users type, and the page that has to be among the results.
SEARCHES = {
    "temperature": "explanation/what-distillation-does",
    "dark knowledge": "reference/glossary",
    "feature distillation": "how-to/feature-distillation",
    "attention transfer": "reference/losses",
    "function matching": "explanation/function-matching",
    "self-distillation": "reference/glossary",
    "straight-through estimator": "reference/glossary",
    "quantization": "how-to/quantization-aware-training",
    "TensorFlow Lite": "how-to/export-to-litert",
    "channel pruning": "how-to/prune-channels",
}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site, serve it on this machine, and return its address."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "-d", folder],
        cwd=ROOT,
        check=True,
    )
    handler = functools.partial(_Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            "The test of the site requires Chromium, and none was found on "
            "PATH. Install it: `apt-get install chromium` (Debian)."
        )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tab(browser, site):
    """Return the one tab. It notes errors and requests to other hosts."""
    tab = browser.new_page()
    tab.complaints = []

    def note(complaint):
        tab.complaints.append(f"{tab.url}: {complaint}")

    tab.on("console", lambda m: m.type == "error" and note(m.text))
    tab.on("pageerror", note)
    own = (site, "data:", "blob:")
    tab.on("request", lambda r: r.url.startswith(own) or note(r.url))
    return tab


def _open(tab, address, width):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.goto(address, wait_until="load")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page(tab, site, page):
    name = page.with_suffix("").as_posix().removesuffix("index")
    _open(tab, f"{site}{name}", width=PHONE)
    assert tab.locator("article h1").count() == 1
    broken = tab.evaluate(
        "[...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
    )
    assert broken == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE


def test_the_toggle_switches_to_dark_mode(tab, site):
    _open(tab, site, width=1280)
    backgrounds = {}
    for _ in range(3):
        tab.locator("label.md-header__button[for^='__palette']:visible").click()
        scheme = tab.locator("body").get_attribute("data-md-color-scheme")
        backgrounds[scheme] = tab.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
    assert set(backgrounds) == {"default", "slate"}
    assert backgrounds["default"] != backgrounds["slate"]


@pytest.mark.parametrize("term", SEARCHES)
def test_search_finds(tab, site, term):
    _open(tab, site, width=1280)
    box = tab.locator(".md-search__input")
    box.click()
    # What is typed before the index is read is lost.
    ready = tab.locator(".md-search-result__meta", has_text="Type to start")
    ready.wait_for(state="attached")
    box.press_sequentially(term)
    found = tab.locator(f".md-search-result__item a[href*='{SEARCHES[term]}']")
    found.first.wait_for(state="attached", timeout=5_000)


def test_no_page_had_errors_or_asked_another_host(tab, site):
    """Runs last, because some errors come after a page has loaded."""
    _open(tab, site, width=1280)
    tab.wait_for_timeout(1000)
    assert tab.complaints == []
