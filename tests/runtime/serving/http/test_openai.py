"""OpenAI's own client, unchanged."""

import base64
import io
import threading

import httpx
import numpy as np
import pytest
from helpers.serving import SlowRunner, eventually
from PIL import Image

import ebca

openai = pytest.importorskip("openai")

PROMPT = "a red circle and a blue square"
FIELDS = {"seed": 1, "steps": 5}


def client_of(client: httpx.Client) -> "openai.OpenAI":
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none")


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def png(image: Image.Image) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    buffer.seek(0)
    buffer.name = "image.png"
    return buffer


def test_generations(client, served_engine):
    ai = client_of(client)
    extra = {**FIELDS, "gamma_attn": {"schedule": "constant", "value": 0.01}}
    made = ai.images.generate(model="shapes", prompt=PROMPT, n=2, size="72x64", extra_body=extra)
    direct = served_engine.generate(PROMPT, **FIELDS, gamma_attn=0.01, num_images=2, height=64, width=72)
    assert len(made.data) == 2
    for one, image in zip(made.data, direct.images, strict=True):
        assert np.array_equal(pixels(base64.b64decode(one.b64_json)), np.asarray(image))
    linked = ai.images.generate(prompt=PROMPT, n=2, size="72x64", response_format="url", extra_body=extra)
    for one, image in zip(linked.data, direct.images, strict=True):
        assert np.array_equal(pixels(httpx.get(one.url).content), np.asarray(image))


def test_models(client):
    ai = client_of(client)
    assert [model.id for model in ai.models.list()] == ["shapes"]
    assert ai.models.retrieve("shapes").id == "shapes"
    with pytest.raises(openai.NotFoundError, match="there is no model 'dall-e-2'"):
        ai.images.generate(model="dall-e-2", prompt=PROMPT)


@pytest.mark.parametrize("masked", [True, False])
def test_transparent_pixels_are_changed(client, served_engine, masked):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    alpha = Image.new("L", (64, 64), 255)
    alpha.paste(0, (16, 16, 48, 48))
    transparent = noise.copy()
    transparent.putalpha(alpha)
    files = {"image": png(noise), "mask": png(transparent)} if masked else {"image": png(transparent)}
    extra = {**FIELDS, "repaint": {"jump_count": 1}}
    made = client_of(client).images.edit(prompt=PROMPT, **files, extra_body=extra)
    found = pixels(base64.b64decode(made.data[0].b64_json))
    hole = Image.eval(alpha, lambda value: 255 - value)
    repaint = ebca.RePaint(jump_count=1)
    direct = served_engine.generate(PROMPT, **FIELDS, image=noise, mask=hole, repaint=repaint)
    assert np.array_equal(found, np.asarray(direct.images[0]))
    outside = np.asarray(alpha) > 0
    assert np.array_equal(found[outside], np.asarray(noise)[outside])


def test_an_edit_without_transparency_is_image_to_image(client):
    image = png(Image.effect_noise((64, 64), 80).convert("RGB"))
    fields = {**FIELDS, "strength": 0.5, "scheduler": "ddim"}
    response = client.post(
        "/v1/images/edits", data={"prompt": PROMPT, "n": "2", **fields}, files={"image": image}
    ).json()
    assert response["parameters"]["task"] == "image-to-image"
    assert response["parameters"]["strength"] == 0.5
    assert len(response["data"]) == 2


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"size": "big"}, "size is 'big'"),
        ({"n": 0}, "num_images"),
        ({"n": 99}, "num_images is 99"),
        ({"response_format": "xml"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"stream": True}, "not streamed"),
        ({"extra_body": {"num_inference_steps": 3}}, "is called `steps` here"),
        ({"extra_body": {"image": "/etc/passwd"}}, "not base64"),
    ],
)
def test_what_is_not_supported_is_refused(client, fields, text):
    raw = {"prompt": PROMPT, **{name: value for name, value in fields.items() if name != "extra_body"}}
    response = client.post("/v1/images/generations", json={**raw, **fields.get("extra_body", {})})
    assert response.status_code == 400
    assert text in response.json()["error"]["message"]


def test_masks_must_be_transparent_somewhere(client):
    image = Image.new("RGB", (64, 64))
    with pytest.raises(openai.BadRequestError, match="no transparent pixels"):
        client_of(client).images.edit(prompt=PROMPT, image=png(image), mask=png(image))
    with pytest.raises(openai.BadRequestError, match="2 files"):
        client_of(client).images.edit(prompt=PROMPT, image=[png(image), png(image)])
    with pytest.raises(openai.BadRequestError, match="cannot be read as an image"):
        client_of(client).images.edit(prompt=PROMPT, image=("a.png", b"nothing"))


def test_a_failed_job_is_not_tried_again(open_service, open_http):
    slow = SlowRunner(ebca.NumericalError("it is not finite", "use other gammas"))
    slow.go.set()
    ai = client_of(open_http(open_service(runners=[slow])))
    with pytest.raises(openai.InternalServerError, match="use other gammas"):
        ai.images.generate(prompt=PROMPT)
    assert slow.runs == 1


def test_a_caller_that_goes_away_cancels_its_job(open_service, open_http):
    service = open_service(runners=[SlowRunner()])
    client = open_http(service)

    def leave() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{client.base_url}/v1/images/generations", json={"prompt": PROMPT}, timeout=0.5)

    leaving = threading.Thread(target=leave)
    leaving.start()
    leaving.join()
    eventually(lambda: [view.state for view in service.views()] == ["cancelled"])
