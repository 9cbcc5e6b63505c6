"""The page of the server in a real browser: by mouse, by keyboard, on a phone, light and dark."""

import base64

import httpx
import pytest

from tests.test_pages import CONTRAST, OUTSIDE, OVERLAPS, SIZES, browser  # noqa: F401 - a fixture
from vitcls.bench.serving import served

TOKEN = "open-sesame"
# What a person does by dragging a file from a folder, which no browser's remote control can do.
FILES = """const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const files = new DataTransfer(); files.items.add(new File([bytes], name, {type}));"""
DROP = f"""([name, type, data]) => {{ {FILES}
  for (const kind of ['dragover', 'drop']) document.getElementById('drop').dispatchEvent(
    new DragEvent(kind, {{dataTransfer: files, bubbles: true, cancelable: true}})); }}"""
PASTE = f"""([name, type, data]) => {{ {FILES}
  document.dispatchEvent(new ClipboardEvent('paste', {{clipboardData: files, bubbles: true}})); }}"""


@pytest.fixture(scope="module")
def server(trained_run, tmp_path_factory):
    """Its address; it asks for a token."""
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with served([str(trained_run), f"--token={TOKEN}"], log) as (address, _):
        yield address


@pytest.fixture(scope="module")
def photo(colours):
    return sorted((colours / "test" / "red").iterdir())[0]


def file_of(photo):
    return [photo.name, "image/jpeg", base64.b64encode(photo.read_bytes()).decode()]


@pytest.fixture
def opened(browser, server):  # noqa: F811
    """Open the page, with the token given: (page, what its console said)."""
    contexts = []

    def open_page(size=SIZES[1], scheme="light", path="/"):
        phone = size == SIZES[0]
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=phone, is_mobile=phone
        )
        contexts.append(context)
        page, said = context.new_page(), []
        page.goto(server + path)
        if path == "/":
            page.wait_for_selector("#login:not([hidden])")
            page.keyboard.type(TOKEN)  # the field has the focus
            page.keyboard.press("Enter")
            page.wait_for_selector("#login[hidden]", state="attached")
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        return page, said

    yield open_page
    for context in contexts:
        context.close()


def answer_on(page):
    page.wait_for_selector("#result:not([hidden])")
    bars = page.locator("#bars li").all()
    return page.locator("#label").inner_text(), [bar.inner_text().split("\n") for bar in bars]


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_an_image_is_named_with_its_best_classes_as_bars(opened, server, photo, way):
    page, said = opened()
    if way == "choose":
        with page.expect_file_chooser() as chooser:
            page.click("#choose")
        chooser.value.set_files(photo)
    else:
        page.evaluate(DROP if way == "drop" else PASTE, file_of(photo))
    label, bars = answer_on(page)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    reply = httpx.post(f"{server}/predict", files={"image": photo.read_bytes()}, headers=headers)
    (answer,) = reply.json()["images"]
    assert label == answer["label"]
    assert bars == [[best["label"], f"{100 * best['score']:.1f} %"] for best in answer["best"]]
    widths = page.evaluate("[...document.querySelectorAll('.bar')].map(b => b.firstChild.offsetWidth / b.offsetWidth)")
    assert widths == pytest.approx([best["score"] for best in answer["best"]], abs=0.01)
    assert page.locator("#name").inner_text() == photo.name
    assert page.locator("#image").evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    assert said == []


def test_all_of_it_can_be_done_by_keyboard(opened, photo):
    page, said = opened()
    focused = "document.activeElement.id"
    assert page.evaluate(focused) == "choose"  # once the token is given
    # In the place of the system's own window, which a busy browser does not always open for a remote control.
    page.evaluate("""part("file").addEventListener("click", (e) => { e.preventDefault(); window.isAsked = true; })""")
    page.keyboard.press("Enter")
    page.wait_for_function("window.isAsked")
    page.set_input_files("#file", photo)
    answer_on(page)
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "explain"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Space")
    page.wait_for_selector("#explain[aria-pressed=true]")
    assert page.locator("#image").evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    page.keyboard.press("Space")
    page.wait_for_selector("#explain[aria-pressed=false]")
    assert said == []


def test_what_is_no_image_is_told_and_the_former_answer_goes(opened, photo):
    page, _ = opened()
    page.evaluate(DROP, file_of(photo))
    answer_on(page)
    page.evaluate(DROP, ["<b>notes</b>.jpg", "image/jpeg", base64.b64encode(b"\xff\xd8\xff nothing").decode()])
    page.wait_for_selector("#problem:not(:empty)")
    assert "cannot be decoded" in page.locator("#problem").inner_text()
    assert page.locator("#result").is_hidden()


def test_a_name_with_markup_is_shown_as_it_is(opened, photo):
    page, said = opened()
    page.evaluate(DROP, ["<img src=x>.jpg", *file_of(photo)[1:]])
    answer_on(page)
    assert page.locator("#name").inner_text() == "<img src=x>.jpg"
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["phone", "desk"])
def test_nothing_is_cut_or_overlaps_and_all_can_be_read(opened, photo, size, scheme):
    page, said = opened(size, scheme)
    page.evaluate(DROP, file_of(photo))
    answer_on(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(CONTRAST) >= 4.5  # WCAG 2.2, 1.4.3
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.locator("#photograph").is_visible() == (size == SIZES[0])
    assert said == []


def test_the_routes_are_described_without_a_script_from_elsewhere(opened, server):
    page, said = opened(SIZES[0], path="/docs")
    page.wait_for_selector("#routes table")
    headings = page.locator("h3").all_inner_texts()
    assert "POST /predict" in headings
    assert "GET /labels" in headings
    assert f"{server}/predict" in page.locator("pre").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[0][0]
    assert page.evaluate(OUTSIDE) == []
    assert said == []
