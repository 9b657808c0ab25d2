"""The web UI's API, called as editor plug-ins call it."""

import base64
import io
import json
import threading

import httpx
import numpy as np
import pytest
from helpers.serving import SlowRunner, eventually
from PIL import Image

PROMPT = "a red circle and a blue square"
BODY = {"prompt": PROMPT, "seed": 5, "steps": 5, "width": 64, "height": 64}


def pixels(text: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image)


def b64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_txt2img(client, served_engine):
    body = {
        **BODY, "cfg_scale": 3, "sampler_name": "Euler a", "batch_size": 2, "nothing_known": 1, "save_images": True,
        "restore_faces": False, "override_settings": {"sd_model_checkpoint": "shapes"},
        "alwayson_scripts": {"ebca": {"args": [{"gamma_attn": 0.01}]}, "other": {"args": []}},
    }  # fmt: skip
    found = client.post("/sdapi/v1/txt2img", json=body).json()
    fields = {"steps": 5, "guidance_scale": 3, "scheduler": "euler_ancestral", "gamma_attn": 0.01}
    direct = served_engine.generate(PROMPT, seed=[5, 6], **fields, num_images=2)
    for text, image in zip(found["images"], direct.images, strict=True):
        assert np.array_equal(pixels(text), np.asarray(image))
    info = json.loads(found["info"])
    assert info["all_seeds"] == [5, 6] and info["sampler_name"] == "Euler a"
    assert found["parameters"]["prompt"] == PROMPT


def test_img2img(client, served_engine):
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    body = {**BODY, "init_images": [f"data:image/png;base64,{b64(image)}"], "denoising_strength": 0.5, "mask_blur": 4}
    found = client.post("/sdapi/v1/img2img", json={**body, "sampler_index": "DDIM"}).json()
    direct = served_engine.generate(PROMPT, seed=5, steps=5, image=image, strength=0.5, scheduler="ddim")
    assert np.array_equal(pixels(found["images"][0]), np.asarray(direct.images[0]))


@pytest.mark.parametrize("invert", [0, 1])
def test_white_pixels_of_a_mask_are_changed(client, invert):
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    repaint = {"ebca": {"args": [{"repaint": {"jump_count": 1}}]}}
    body = {**BODY, "init_images": [b64(image)], "mask": b64(mask), "inpainting_mask_invert": invert}
    found = client.post("/sdapi/v1/img2img", json={**body, "alwayson_scripts": repaint}).json()
    kept = (np.asarray(mask) == 0) != bool(invert)
    made = pixels(found["images"][0])
    assert np.array_equal(made[kept], np.asarray(image)[kept])
    assert not np.array_equal(made[~kept], np.asarray(image)[~kept])


@pytest.mark.parametrize(
    ("path", "fields", "text"),
    [
        ("txt2img", {"restore_faces": True}, "restore_faces"),
        ("txt2img", {"enable_hr": True}, "enable_hr"),
        ("txt2img", {"styles": ["x"]}, "styles"),
        ("txt2img", {"subseed_strength": 0.5}, "subseed_strength"),
        ("txt2img", {"sampler_name": "DPM fast"}, "the sampler 'DPM fast' is not there; there are PLMS"),
        ("txt2img", {"sampler_name": "Euler", "scheduler": "Exponential"}, "Euler Exponential"),
        ("txt2img", {"scheduler": "Karras"}, "without a sampler"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "other"}}, "no model 'other'"),
        ("txt2img", {"override_settings": {"CLIP_stop_at_last_layers": "x"}}, "CLIP_stop_at_last_layers"),
        ("txt2img", {"alwayson_scripts": {"controlnet": {"args": [{"image": "x"}]}}}, "script 'controlnet'"),
        ("txt2img", {"alwayson_scripts": {"ebca": {"args": [{"image": "/etc/passwd"}]}}}, "field 'image'"),
        ("txt2img", {"alwayson_scripts": {"ebca": {"args": [{"nonsense": 1}]}}}, "nonsense"),
        ("txt2img", {"batch_size": 0}, "batch_size"),
        ("txt2img", {"batch_size": 1000, "n_iter": 1000}, "num_images"),
        ("img2img", {}, "init_images has 0"),
        ("img2img", {"init_images": ["/etc/passwd"]}, "not base64"),
        ("img2img", {"init_images": ["AAAA"]}, "cannot be read as an image"),
        ("img2img", {"init_images": [b64(Image.new("RGB", (8, 8)))], "resize_mode": 1}, "resize_mode"),
    ],
)  # fmt: skip
def test_what_changes_the_image_and_is_not_supported_is_refused(client, path, fields, text):
    response = client.post(f"/sdapi/v1/{path}", json={**BODY, **fields})
    assert response.status_code == 400
    assert text in response.json()["error"]["message"]


def test_karras_in_both_spellings(client):
    for fields in ({"sampler_name": "DPM++ 2M Karras"}, {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}):
        info = client.post("/sdapi/v1/txt2img", json={**BODY, **fields}).json()["info"]
        assert json.loads(info)["sampler_name"] == "DPM++ 2M Karras"


def test_lists_and_options(client):
    assert client.get("/sdapi/v1/sd-models").json()[0]["title"] == "shapes"
    names = [one["name"] for one in client.get("/sdapi/v1/samplers").json()]
    assert {"PLMS", "DDIM", "Euler a", "DPM++ 2M Karras"} <= set(names)
    for name in names:
        assert (
            client.post("/sdapi/v1/txt2img", json={**BODY, "sampler_name": name, "batch_size": 99}).status_code == 400
        )
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "shapes"
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "shapes", "x": 1}).status_code == 200
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "other"}).status_code == 400


def test_progress_and_interrupt(open_service, open_http):
    client = open_http(open_service(runners=[SlowRunner()]))
    assert client.get("/sdapi/v1/progress").json()["progress"] == 0
    answers = []

    def call() -> None:
        body = {"prompt": "a"}
        answers.append(httpx.post(f"{client.base_url}/sdapi/v1/txt2img", json=body, timeout=30))

    calling = threading.Thread(target=call)
    calling.start()
    eventually(lambda: client.get("/sdapi/v1/progress").json()["state"]["sampling_step"] > 0)
    assert 0 < client.get("/sdapi/v1/progress").json()["progress"] < 1
    assert client.post("/sdapi/v1/interrupt").json() == {}
    calling.join(10)
    assert answers[0].status_code == 409
    assert isinstance(answers[0].json()["error"]["problem"], str)
    assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_previews_are_shown(client):
    seen = []

    def call() -> None:
        httpx.post(f"{client.base_url}/sdapi/v1/txt2img", json={**BODY, "steps": 100}, timeout=30)

    calling = threading.Thread(target=call)
    calling.start()
    while calling.is_alive():
        seen.append(client.get("/sdapi/v1/progress").json()["current_image"])
    assert any(seen)
