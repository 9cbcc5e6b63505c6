"""The pages in a real browser, at the width of a phone and of a desk, light and dark."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.test_outputs import outputs_of, random_outputs
from vitcls.__main__ import main
from vitcls.outputs import write_outputs
from vitcls.pictures import write_pictures
from vitcls.report.selection import select

SIZES = [(400, 800), (1400, 900)]
LONG = "a name that is far too long for any column of any table and has_no_place_to_break_it_in_two"


def picture(number):
    content = io.BytesIO()
    Image.new("RGB", (96 + number % 48, 144), (number % 256, 90, 160)).save(content, "JPEG")
    return content.getvalue()


def run_of(run, outputs):
    """A run folder with answers, pictures and learning curves."""
    write_outputs(run, outputs)
    pictures = {int(outputs.ids[n]): picture(n) for n in select(outputs).all}
    write_pictures(run, outputs.role, {"image": pictures, "attribution": pictures})
    rows = [
        f"{epoch},{epoch * 10 + 9},0.{epoch + 3},0.{epoch + 2},{1 / (epoch + 1)},{1 / (epoch + 1)}"
        for epoch in range(6)
    ]
    (run / "metrics.csv").write_text(
        "\n".join(["epoch,step,train/accuracy,val/accuracy,train/loss,val/loss", *rows]) + "\n"
    )
    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by name."""
    root = tmp_path_factory.mktemp("pages")
    two = random_outputs(images=80, classes=2, labels=[LONG, "b"])
    many = random_outputs(
        images=300, classes=101, labels=[f"{LONG} {c}" if c % 9 == 0 else f"c {c}" for c in range(101)]
    )
    several = random_outputs("multilabel", images=80, classes=6, temperature=1.0)
    found = {}
    for name, outputs in (("two", two), ("many", many), ("several", several)):
        (root / name).mkdir()
        assert main(["report", str(run_of(root / name, outputs))]) == 0
        found[name] = root / name / "report" / "index.html"
    for name in ("first", "second"):
        (root / name).mkdir()
        targets, noise = np.arange(60) % 3, np.random.default_rng(len(name)).normal(size=(60, 3))
        answers = outputs_of(3 * np.eye(3)[targets] + noise, targets)
        run_of(root / name, answers)
        (root / name / "config.yaml").write_text(f"model: {{lr: {len(name)}, checkpoint: {LONG}/{name}}}\n")
    assert main(["report", str(root / "first"), str(root / "second"), "--output", str(root / "both")]) == 0
    found["comparison"] = root / "both" / "index.html"
    return found


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser):
    """Open a page: (page, what its console said)."""
    contexts = []

    def open_page(file, size=SIZES[1], scheme="light"):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True, service_workers="block"
        )
        contexts.append(context)
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(request.url))
        page.goto(file.as_uri())
        return page, said

    yield open_page
    for context in contexts:
        context.close()


OUTSIDE = """() => [...document.querySelectorAll('main *')].filter(e => {
  if (e.closest('.scroll, pre, svg') && !e.matches('.scroll, pre')) return false;
  const box = e.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.outerHTML.slice(0, 120))"""
OVERLAPS = """() => { const found = [];
  for (const parent of document.querySelectorAll('main, section, div:not(.scroll), dl, ul, li')) {
    const boxes = [...parent.children].filter(e => !['inline', 'contents'].includes(getComputedStyle(e).display))
      .map(e => [e, e.getBoundingClientRect()]).filter(([, b]) => b.width && b.height);
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
      const [a, b] = [boxes[i][1], boxes[j][1]];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      if (wide > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)
        found.push([boxes[i][0].outerHTML.slice(0, 80), boxes[j][0].outerHTML.slice(0, 80)]);
    } }
  return found; }"""
IMAGES = """async () => { const images = [...document.images];
  images.forEach(i => { i.loading = 'eager'; });
  const loaded = await Promise.allSettled(images.map(i => i.decode()));
  return [images.length, loaded.filter(r => r.status !== 'fulfilled').length]; }"""


@pytest.mark.parametrize("size", SIZES, ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["two", "many", "several", "comparison"])
def test_nothing_is_cut_overlaps_or_fails(name, size, pages, opened):
    page, said = opened(pages[name], size)
    images, broken = page.evaluate(IMAGES)
    assert (images > 20) == (name != "comparison")
    assert broken == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPS) == []
    assert said == []


CONTRAST = """() => { const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!c.includes('rgba(0, 0, 0, 0)')) return c; } return 'rgb(255, 255, 255)'; };
  const texts = document.querySelectorAll('main p, main td, main th, main dt, main dd, main a, main small, .file');
  return Math.min(...[...texts].map(e => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["two", "comparison"])
def test_text_can_be_read_in_both_schemes(name, scheme, pages, opened):
    page, said = opened(pages[name], scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate(CONTRAST) >= 4.5  # WCAG 2.2, 1.4.3
    assert said == []


def test_a_table_is_sorted_by_mouse_and_by_keyboard(pages, opened):
    page, said = opened(pages["many"])
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(r => r.children[4].dataset.value)"
    head = page.locator("table.sortable th", has_text="recall")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    values = page.evaluate(column)
    defined = [float(value) for value in values if value]
    assert defined == sorted(defined)
    assert values[: len(defined)].count("") == 0  # what is not defined stands last
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = page.evaluate(column)
    assert [float(value) for value in values[: len(defined)]] == sorted(defined, reverse=True)
    assert values[: len(defined)].count("") == 0
    page.locator("table.sortable th button", has_text="class").click()
    assert head.get_attribute("aria-sort") is None
    assert said == []


def test_all_that_scrolls_or_is_linked_can_be_reached_by_keyboard(pages, opened):
    page, _ = opened(pages["many"], SIZES[0])
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    scrolls = "[...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 1"
    scrolls += " && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.tabIndex < 0).length"
    assert page.evaluate(scrolls) == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#figures")
