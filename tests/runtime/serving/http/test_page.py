"""The web page in a headless Chromium."""

import io
import re
import shutil
from collections.abc import Iterator

import pytest
from helpers.serving import SlowRunner
from PIL import Image

from ebca.runtime.serving.http.app import PAGE
from ebca.runtime.serving.http.keys import Keys
from ebca.runtime.serving.runner import EngineRunner

sync_api = pytest.importorskip("playwright.sync_api")

sync_api.expect.set_options(timeout=15_000)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A tab that fails its test for errors on the console and for requests elsewhere."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            None if re.match(r"http://127\.0\.0\.1|blob:|data:", request.url) else wrong.append(request.url)
        ),
    )
    page.wrong = wrong
    yield page
    context.close()
    assert wrong == []


def opened(page, client, prompt: str = "a red circle", steps: int = 5):
    page.goto(str(client.base_url))
    # Not `wait_for_function`: the page's policy forbids what it does.
    sync_api.expect(page.locator("#scheduler option")).not_to_have_count(0)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Steps", exact=True).fill(str(steps))
    return page


def status(page, text: str) -> None:
    sync_api.expect(page.get_by_role("status")).to_contain_text(text)


@needs_chromium
def test_a_prompt_becomes_an_image_with_telemetry(page, client):
    opened(page, client, "a red circle and a blue square")
    page.get_by_label("Record attention maps").check()
    page.get_by_label("Record energies").check()
    page.get_by_role("button", name="Make images").click()
    status(page, "Done: 1 image")
    assert page.locator("#made img").evaluate("image => image.naturalWidth") == 64
    page.get_by_role("button", name="circle", exact=True).click()
    sync_api.expect(page.locator("#attention-map")).to_have_attribute("aria-label", "Attention to circle")
    sync_api.expect(page.locator("#plots svg")).to_have_count(3)
    # The gallery comes last.
    sync_api.expect(page.locator("#gallery li").first).to_be_visible()
    page.locator("#gallery").get_by_text("Parameters").first.click()
    assert '"gamma_attn": 0.01' in page.locator("#gallery pre").first.inner_text()
    page.get_by_label("Prompt", exact=True).fill("other")
    page.get_by_role("button", name="Use the parameters").first.click()
    assert page.get_by_label("Prompt", exact=True).input_value() == "a red circle and a blue square"
    count = page.locator("#gallery li").count()
    page.get_by_role("button", name="Delete").first.click()
    sync_api.expect(page.locator("#gallery li")).to_have_count(count - 1)


@needs_chromium
def test_progress_previews_and_cancelling(page, client):
    opened(page, client, steps=150)
    page.get_by_label("Images", exact=True).fill("8")
    page.get_by_role("button", name="Make images").click()
    page.locator("#preview").wait_for(state="visible")
    sync_api.expect(page.locator("#progress")).not_to_have_attribute("value", "0")
    assert page.get_by_role("button", name="Make images").is_disabled()
    page.get_by_role("button", name="Cancel").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("the job was cancelled")
    assert page.get_by_role("button", name="Make images").is_enabled()


@needs_chromium
def test_a_comparison_has_the_same_seed(page, client):
    opened(page, client)
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Compare with the base").click()
    status(page, "Done: both with seed 7")
    captions = page.locator("#made figcaption").all_inner_texts()
    assert [caption.split(" Save")[0] for caption in captions] == ["Base", "With energy-based cross attention"]
    jobs = client.get("/v1/jobs", params={"limit": 2}).json()["jobs"]
    assert [job["parameters"]["gamma_attn"] for job in jobs] == [0.01, 0.0]
    assert {job["parameters"]["seed"] for job in jobs} == {7}


@needs_chromium
def test_a_mask_is_painted_with_pointer_and_keyboard(page, client, tmp_path):
    source = tmp_path / "source.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(source)
    opened(page, client, steps=3)
    page.get_by_text("Start from an image").click()
    page.get_by_label("Image (PNG, JPEG or WebP)").set_input_files(source)
    canvas = page.locator("#mask")
    canvas.wait_for(state="visible")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    painted = "() => [...document.querySelector('#mask').getContext('2d').getImageData(0, 0, 64, 64).data].join()"
    before = page.evaluate(painted)
    canvas.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "Space"):
        page.keyboard.press(key)
    assert page.evaluate(painted) != before
    page.get_by_role("button", name="Make images").click()
    status(page, "Done: 1 image")
    job = client.get("/v1/jobs", params={"limit": 1}).json()["jobs"][0]
    assert job["parameters"]["task"] == "repaint"
    made = Image.open(io.BytesIO(client.get(job["images"][0]).content))
    with Image.open(source) as original:
        assert made.getpixel((2, 60)) == original.getpixel((2, 60))
    page.get_by_role("button", name="Clear the mask").click()
    page.get_by_label("Scheduler").select_option("ddim")
    page.get_by_role("button", name="Make images").click()
    sync_api.expect(page.get_by_role("button", name="Make images")).to_be_enabled()
    status(page, "Done: 1 image")
    job = client.get("/v1/jobs", params={"limit": 1}).json()["jobs"][0]
    assert job["parameters"]["task"] == "image-to-image"


@needs_chromium
def test_errors_are_shown_as_texts(page, client):
    opened(page, client, prompt="<img src=x onerror=alert(1)>")
    page.get_by_label("Words to strengthen").fill("circle")
    page.get_by_role("button", name="Make images").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("write word=2")
    page.get_by_label("Words to strengthen").fill("")
    page.get_by_role("button", name="Make images").click()
    status(page, "Done: 1 image")
    sync_api.expect(page.locator("#gallery li").first).to_contain_text("<img src=x")
    page.get_by_label("Steps", exact=True).fill("100000")
    page.get_by_role("button", name="Make images").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("steps is 100000")
    # The browser itself notes the refused call.
    page.wrong[:] = [text for text in page.wrong if "status of 400" not in text]


@needs_chromium
def test_a_second_prompt_and_sizes_are_for_models_with_two_text_encoders(page, open_service, open_http, monkeypatch):
    client = open_http(open_service())
    opened(page, client)
    sync_api.expect(page.locator("#two-encoders")).to_be_hidden()
    page.get_by_label("Decode in tiles").check()
    page.get_by_role("button", name="Make images").click()
    status(page, "Done: 1 image")
    assert client.get("/v1/jobs").json()["jobs"][0]["parameters"]["vae_tiling"] is True
    describe = EngineRunner.describe
    monkeypatch.setattr(EngineRunner, "describe", lambda self: {**describe(self), "second_prompt": True})
    opened(page, client)
    page.get_by_text("Second prompt and sizes").click()
    page.get_by_label("Original height").fill("1024")
    page.get_by_role("button", name="Make images").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("Original height and Original width belong together")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    page.get_by_label("Original width").fill("2048")
    page.get_by_label("Prompt of the second text encoder", exact=True).fill("oil painting")
    page.get_by_role("button", name="Make images").click()
    # This engine has one encoder, and says so.
    sync_api.expect(page.get_by_role("alert")).to_contain_text("prompt_2")
    assert sent[-1]["prompt_2"] == "oil painting" and sent[-1]["original_size"] == [1024, 2048]
    assert "crops_coords_top_left" not in sent[-1]
    page.wrong[:] = [text for text in page.wrong if "status of 400" not in text]


@needs_chromium
def test_a_key_is_asked_for(page, open_service, open_http):
    slow = SlowRunner()
    slow.go.set()
    client = open_http(open_service(runners=[slow]), keys=Keys({"anna": "key-of-anna-1234567"}))
    page.goto(str(client.base_url))
    page.get_by_label("API key").wait_for(state="visible")
    page.get_by_label("API key").fill("key-of-anna-1234567")
    page.get_by_label("API key").press("Tab")
    sync_api.expect(page.locator("#model")).to_contain_text("slow")
    page.wrong[:] = [text for text in page.wrong if "status of 401" not in text]


@needs_chromium
def test_everything_is_labelled_and_fits_a_phone(page, client):
    opened(page, client)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unnamed = """() => [...document.querySelectorAll("input, select, textarea, button, canvas, img, progress")]
        .filter((one) => !(one.labels?.length || one.ariaLabel || one.alt || one.textContent.trim()))
        .map((one) => one.outerHTML)"""
    assert page.evaluate(unnamed) == []
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(3):
        page.keyboard.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_the_files_of_the_page_have_no_addresses_elsewhere(client):
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text and "innerHTML" not in text, file.name
        assert client.get(f"/page/{file.name}").status_code == 200
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
    assert client.get("/page/..%2fapp.py").status_code == 404
