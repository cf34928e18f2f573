"""What only a browser can say: no complaint, nothing loaded from elsewhere, no sideways scrolling, readable colours."""

import io
from dataclasses import replace

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from PIL import Image

from bessemer.records import WORST, Curve
from bessemer.report import report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="neither chromium nor google-chrome is on PATH")

# the contrast (WCAG 2.2) of every text with what lies behind it; background images are decoration here
CONTRAST = """
(() => {
  const channels = color => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = channels(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const [a, b] = [channels(element.ownerSVGElement ? style.fill : style.color), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push([walker.currentNode.data.trim(), ratio]);
  }
  return poor;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(three_runs, cascade, minimal, tmp_path_factory):
    """Every part that a page can have."""
    curves = [Curve(name, "Linf", [0.0, 0.1, 0.2], [6, 4, 2], 8) for name in ("first", "second", WORST)]
    steps = replace(cascade, suite="pgd-curve", attacks=[replace(cascade.attacks[0], name="PGD-2000")], specimens=[])
    more = [replace(cascade, curves=curves), minimal, steps]
    runs = [replace(run, evaluations=[*run.evaluations, *more]) for run in three_runs]
    return report(runs, tmp_path_factory.mktemp("page") / "report.html", compare=True)


def test_the_page_has_every_part(browser, page):
    browser.open(page)
    parts = "accuracy broken compare distance findings gallery order provenance radius reading steps training"
    assert browser.value("[...document.querySelectorAll('h2[id]')].map(h => h.id).sort().join(' ')") == (
        parts.replace("gallery", "gallery headline")
    )


def picture(browser):
    return np.asarray(Image.open(io.BytesIO(browser.picture(whole=False))).convert("L"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_loads_without_complaint_and_fits(browser, page, width, scheme):
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(page, width, 740, scheme, phone=width == 360)
    assert browser.value("matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.value("document.querySelectorAll('details').forEach(d => d.open = true)") is None
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.value(CONTRAST) == []
    assert browser.complaints == []
    assert [address for address in browser.requests if not address.startswith(("file:", "data:"))] == []
    seen = picture(browser)
    assert seen.std() > 10  # something is drawn
    assert (np.median(seen) < 64) if scheme == "dark" else (np.median(seen) > 192)


def test_wide_tables_scroll_inside_themselves_and_can_be_reached_by_keyboard(browser, page):
    browser.open(page, 360, 740, phone=True)
    scrolling = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.value(f"{scrolling}.length") > 0
    assert browser.value(f"{scrolling}.every(e => e.tabIndex === 0)")


def test_print_is_on_white_with_everything_open(browser, page):
    browser.open(page, 794, 1123, "dark", medium="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.value("[...document.querySelectorAll('.specimens img')].every(e => e.checkVisibility())")
    assert browser.value("[...document.querySelectorAll('details pre')].every(e => e.checkVisibility())")
    assert browser.value(CONTRAST) == []


def test_long_names_do_not_widen_the_page(browser, three_runs, tmp_path):
    long = "a" * 150
    run = three_runs[0].__class__(long, {"x": long}, three_runs[0].metrics, three_runs[0].evaluations)
    browser.open(report([run, *three_runs], tmp_path / "r.html"), 360, 740, phone=True)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("document.documentElement.scrollWidth") == 360
