"""The report in a real browser: nothing is asked of the network, nothing fails, and every text fits its box."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import handmade
import pytest

from fixpatch.report import write_report, write_training_report

pytestmark = pytest.mark.slow
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
# Elements whose content is wider than they are, the document itself first; a plot's text by where it ends.
OVERFLOW = """
const wide = [], page = document.documentElement;
if (page.scrollWidth > page.clientWidth) wide.push(['page', page.scrollWidth, page.clientWidth]);
for (const each of document.querySelectorAll('body *')) {
  if (each.closest('svg') || getComputedStyle(each).display === 'inline' || !each.clientWidth) continue;
  const [needs, has] = [each.scrollWidth, each.clientWidth];
  if (needs > has + 1) wide.push([each.outerHTML.slice(0, 80), needs, has]);
}
for (const text of document.querySelectorAll('svg.plot text')) {
  const box = text.getBoundingClientRect(), plot = text.closest('svg').getBoundingClientRect();
  if (box.left < plot.left - 1 || box.right > plot.right + 1) wide.push([text.textContent, box.left, box.right]);
}
return wide;
"""
# Texts of a plot that touch each other.
CLASHES = """
const found = [];
for (const plot of document.querySelectorAll('svg.plot')) {
  const boxes = [...plot.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, b] = [boxes[i][1], boxes[j][1]];
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 3 && !plot.closest('details:not([open])')) found.push([boxes[i][0], boxes[j][0]]);
  }
}
return found;
"""
SMALLEST = (
    "return Math.min(...[...document.querySelectorAll('svg.plot text')].map(t => t.getBoundingClientRect().height))"
)
PAPER = "return getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by selenium."""
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver on this machine (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of report."""
    folder = tmp_path_factory.mktemp("reports")
    names = tuple("<b>" + "Rinderkennzeichnungsfleischetikettierung" * 4 + str(i) for i in range(100))
    many = handmade.evaluation(classes=names, warnings=names[:2], versions=dict.fromkeys(names[:2], names[3]))
    described = handmade.described()
    shown = {
        "full": (handmade.evaluation(), handmade.gallery(), handmade.shifts(), described),
        "base": (handmade.base_alone(), handmade.gallery(3, channels=1, patched=False), (), None),
        "open": (handmade.only_base_attacked(), None, (), None),
        "many": (many, handmade.gallery(8, size=224), handmade.shifts(140), described),
    }
    for name, (result, gallery, shifts, patch) in shown.items():
        write_report(result, gallery, shifts, f"fixpatch eval {'x' * 300}", folder / f"{name}.html", patch=patch)
    write_training_report(handmade.training(), folder / "train.html", command="fixpatch train", patch=described)
    return {path.stem: path for path in folder.iterdir()}


def show(browser: Any, path: Path, width: int, scheme: str) -> None:
    """Open a page as a screen of that width and colour scheme has it, with everything unfolded."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_is = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme_is})
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")


@pytest.mark.parametrize("name", ["full", "base", "open", "many", "train"])
@pytest.mark.parametrize("width", [400, 1400])
def test_every_text_fits(browser: Any, reports: dict[str, Path], name: str, width: int) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        show(browser, reports[name], width, scheme)
        assert browser.execute_script(OVERFLOW) == []
        assert browser.execute_script(CLASHES) == []
        assert browser.execute_script(SMALLEST) >= 11, "pixels: plots can be read"
        papers.add(browser.execute_script(PAPER))
    assert len(papers) == 2


def test_no_error_and_no_request(browser: Any, reports: dict[str, Path]) -> None:
    browser.get_log("performance")
    for path in reports.values():
        browser.get(path.as_uri())
        assert browser.execute_script(
            "return [...document.images].every(each => each.complete && each.naturalWidth > 0)"
        )
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert len(asked) >= len(reports)
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


def test_prints_on_paper_in_light_colours(browser: Any, reports: dict[str, Path]) -> None:
    show(browser, reports["full"], 1400, "dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert browser.execute_script(PAPER) == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert base64.b64decode(printed).startswith(b"%PDF")
