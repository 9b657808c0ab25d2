"""The project's own API."""

import base64
import io
import json
import logging
import threading

import httpx
import pytest
from helpers.serving import SlowRunner, eventually
from PIL import Image

import ebca
from ebca.errors import ParameterError
from ebca.runtime.serving.http.keys import Keys
from ebca.runtime.serving.http.middleware import JsonLines
from ebca.runtime.serving.store import State

REQUEST = {"prompt": "a red circle and a blue square", "seed": 1, "steps": 5}


def png(size=(64, 64), colour="red", mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def problem(response: httpx.Response) -> str:
    found = response.json()["error"]
    assert found["message"] == "; ".join(part for part in (found["problem"], found["remedy"]) if part)
    assert found["request_id"] == response.headers["x-request-id"]
    return found["problem"]


def events_of(lines) -> list[tuple[str, dict]]:
    found, name = [], ""
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            found.append((name, json.loads(line[6:])))
    return found


def test_an_image_is_made_and_has_its_parameters(client, served_engine, tmp_path):
    job = client.post("/v1/generate", json={**REQUEST, "num_images": 2}, params={"wait": True})
    assert job.status_code == 200 and job.json()["state"] == "done"
    addresses = job.json()["images"]
    assert len(addresses) == 2
    direct = served_engine.generate(**REQUEST, num_images=2).save(tmp_path / "direct.png")
    for address, file in zip(addresses, direct, strict=True):
        response = client.get(address)
        assert response.headers["content-type"] == "image/png"
        assert response.content == file.read_bytes()
    assert client.get(job.headers["location"]).json() == job.json()
    assert client.get("/v1/jobs").json()["jobs"][0]["id"] == job.json()["id"]


def test_events_tell_the_progress(client):
    job = client.post("/v1/generate", json={**REQUEST, "steps": 20, "previews": 1})
    assert job.status_code == 202
    with client.stream("GET", f"{job.headers['location']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        found = events_of(stream.iter_lines())
    names = [name for name, _ in found]
    assert names[-1] == "done" and {"progress", "preview"} <= set(names)
    done = [data["done"] for name, data in found if name == "progress"]
    assert done == sorted(done) and done[-1] == 21
    preview = base64.b64decode(next(data["png"] for name, data in found if name == "preview"))
    assert Image.open(io.BytesIO(preview)).size == (64, 64)
    assert found[-1][1]["images"]
    with client.stream("GET", f"{job.headers['location']}/events") as stream:
        assert [name for name, _ in events_of(stream.iter_lines())] == ["done"]


def test_images_come_as_base64_and_as_files(client):
    fields = {**REQUEST, "steps": 4, "repaint": {"jump_count": 1}}
    image, mask = png(), png(colour="white")
    first = client.post(
        "/v1/generate", json={**fields, "image": b64(image), "mask": b64(mask)}, params={"wait": True}
    ).json()
    files = {"image": ("a.png", image), "mask": ("b.png", mask), "request": (None, json.dumps(fields))}
    second = client.post("/v1/generate", files=files, params={"wait": True}).json()
    assert first["parameters"]["task"] == second["parameters"]["task"] == "repaint"
    assert client.get(first["images"][0]).content == client.get(second["images"][0]).content


def test_telemetry(client):
    fields = {**REQUEST, "energies": True, "attention_maps": True}
    job = client.post("/v1/generate", json=fields, params={"wait": True}).headers["location"]
    assert client.get(f"{job}/energies").json()["images"] == 1
    assert "circle" in client.get(f"{job}/attention").json()["images"][0]["tokens"]
    sheet = client.get(f"{job}/attention.png")
    assert Image.open(io.BytesIO(sheet.content)).width > 256
    assert client.get(f"{job}/attention.png", params={"image": 7}).status_code == 404
    without = client.post("/v1/generate", json=REQUEST, params={"wait": True}).headers["location"]
    assert "no energies" in problem(client.get(f"{without}/energies"))


@pytest.mark.parametrize(
    ("content", "headers", "status", "text"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"[]", {}, 400, "of type list"),
        (b"\xff\xfe", {}, 400, "not JSON"),
        (b'{"prompt": NaN}', {}, 400, "NaN is no number"),
        (b"[" * 100_000, {}, 400, "not JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", {}, 400, "not JSON"),
        (b'{"prompt": "a", "steps": "x"}', {}, 400, "steps"),
        (b'{"prompt": "a", "height": "x"}', {}, 400, "height"),
        (b'{"prompt": "a", "height": 1e300}', {}, 400, "height"),
        (b'{"prompt": "a", "timeout_s": 1e9}', {}, 400, "timeout_s"),
        (b'{"prompt": "\\ud800"}', {}, 400, "Unicode"),
        (b'{"prompt": "a", "sampler": "euler"}', {}, 400, "sampler"),
        (b'{"prompt": "a", "image": "/etc/passwd"}', {}, 400, "not base64"),
        (b"x" * 1_000_001, {}, 413, "larger than"),
        (b"{}", {"content-type": "text/plain"}, 415, "text/plain"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "boundary"),
        (b"x", {"content-type": "multipart/form-data; boundary=y"}, 400, ""),
        (b"{}", {"origin": "http://evil.example"}, 403, "origin"),
    ],
)
def test_bad_bodies_are_refused(client, content, headers, status, text):
    response = client.post("/v1/generate", content=content, headers={"content-type": "application/json", **headers})
    assert response.status_code == status, response.text
    assert text in problem(response)


def test_a_body_of_unknown_length_is_cut_off(client):
    def endless():
        for _ in range(200):
            yield b" " * 100_000

    response = client.post("/v1/generate", content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/jobs/unknown", 404), ("GET", "/v1/jobs/%ff/events", 404), ("DELETE", "/v1/jobs/unknown", 404),
    ("GET", "/v1/files/unknown.png", 404), ("GET", "/nothing", 404), ("PUT", "/v1/generate", 405),
    ("GET", "/v1/jobs?limit=x", 422), ("GET", "/v1/jobs/unknown/images/99999999999999999999", 404),
])  # fmt: skip
def test_unknown_addresses(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert problem(response)


def test_a_job_is_cancelled_run_again_and_removed(open_service, open_http):
    slow = SlowRunner()
    client = open_http(open_service(runners=[slow]))
    job = client.post("/v1/generate", json=REQUEST).headers["location"]
    eventually(lambda: client.get(job).json()["state"] == "running")
    assert client.delete(job, params={"purge": True}).status_code == 409
    assert client.delete(job).json()["state"] in ("running", "cancelled")
    eventually(lambda: client.get(job).json()["state"] == "cancelled")
    assert client.get(job).json()["error"]["problem"] == "the job was cancelled"
    slow.go.set()
    assert client.post(f"{job}/run", params={"wait": True}).json()["state"] == "done"
    assert client.post(f"{job}/run").status_code == 409
    assert client.delete(job).json()["state"] == "done"
    assert client.delete(job, params={"purge": True}).status_code == 200
    assert client.get(job).status_code == 404


def test_a_full_queue_says_when_to_come_again(open_service, open_http):
    client = open_http(open_service(runners=[SlowRunner()], queue=1))
    client.post("/v1/generate", json=REQUEST)
    eventually(lambda: "ebca_jobs_running 1.0" in client.get("/metrics").text)
    assert client.post("/v1/generate", json=REQUEST).json()["position"] == 1
    response = client.post("/v1/generate", json=REQUEST)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1


def test_a_service_that_ends_answers_who_waits(open_service, open_http):
    slow = SlowRunner()
    service = open_service(runners=[slow])
    client = open_http(service)
    answers = {}
    running = client.post("/v1/generate", json=REQUEST).headers["location"]
    eventually(lambda: client.get(running).json()["state"] == "running")

    def wait() -> None:
        answers["queued"] = httpx.post(f"{client.base_url}/v1/generate?wait=true", json=REQUEST, timeout=30)

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: service.counts() == (1, 1))
    service.drain()
    waiting.join(10)
    assert answers["queued"].json()["state"] == "queued"
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    assert client.post("/v1/generate", json=REQUEST).status_code == 503
    slow.go.set()
    eventually(lambda: client.get(running).json()["state"] == "done")


def test_keys(open_service, open_http, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the teams\nanna key-of-anna-1234567\n\nbert key-of-bert-1234567\n")
    file.chmod(0o600)
    slow = SlowRunner()
    slow.go.set()
    client = open_http(open_service(runners=[slow]), keys=Keys.read(file))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "é"}, {"authorization": "Basic é"}):
        encoded = {name: value.encode() for name, value in headers.items()}
        refused = client.post("/v1/generate", json=REQUEST, headers=encoded)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    anna = {"authorization": "Bearer key-of-anna-1234567"}
    basic = {"authorization": f"Basic {b64(b'user:key-of-anna-1234567')}"}
    bert = {"x-api-key": "key-of-bert-1234567"}
    job = client.post("/v1/generate", json=REQUEST, headers=anna, params={"wait": True}).headers["location"]
    assert client.get(job, headers=basic).status_code == 200
    assert client.get(job, headers=bert).status_code == 404
    assert client.get("/v1/jobs", headers=bert).json() == {"jobs": []}
    assert client.get("/healthz").status_code == client.get("/").status_code == 200
    assert client.get("/metrics").status_code == 401


@pytest.mark.parametrize("text", ["", "anna", "anna short", "anna key-of-anna-1234567\nanna key-of-bert-1234567"])
def test_key_files_are_checked(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ParameterError, match="others may read"):
        Keys.read(file)
    file.chmod(0o600)
    with pytest.raises(ParameterError, match=r"line|no keys"):
        Keys.read(file)


def test_host_names_and_origins(open_service, open_http):
    slow = SlowRunner()
    slow.go.set()
    client = open_http(open_service(runners=[slow]), hosts=("127.0.0.1", "::1"), origins=("https://app.example",))
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[::1", ""):
        assert client.get("/v1/model", headers={"host": host}).status_code in (400, 403)
    assert client.get("/v1/model", headers={"host": "[::1]:80"}).status_code == 200
    allowed = client.post("/v1/generate", json=REQUEST, headers={"origin": "https://app.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert client.post("/v1/generate", json=REQUEST, headers={"origin": "null"}).status_code == 403
    assert "access-control-allow-origin" not in client.get("/v1/model").headers


def test_a_bug_is_an_error_without_details(open_service, open_http, monkeypatch):
    service = open_service(start=False)
    client = open_http(service)
    monkeypatch.setattr(service, "views", lambda *_: 1 / 0)
    response = client.get("/v1/jobs")
    assert response.status_code == 500
    assert problem(response) == "an internal error"


def test_request_ids_and_log_lines(client, caplog):
    logging.getLogger("ebca.runtime.serving").propagate = True
    with caplog.at_level(logging.INFO, "ebca.runtime.serving"):
        assert client.get("/healthz", headers={"x-request-id": "my-id"}).headers["x-request-id"] == "my-id"
        assert client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
        client.post("/v1/generate", json={**REQUEST, "prompt": "a secret"})
    eventually(lambda: len(caplog.records) >= 3)
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert lines[0]["request_id"] == "my-id" and lines[0]["route"] == "/healthz" and lines[0]["status"] == 200
    assert "a secret" not in json.dumps(lines)


def test_failed_jobs_are_counted(open_service, open_http):
    slow = SlowRunner(ebca.NumericalError("it is not finite", "use other gammas"))
    slow.go.set()
    service = open_service(runners=[slow])
    client = open_http(service)
    job = client.post("/v1/generate", json=REQUEST, params={"wait": True}).json()
    assert job["state"] == State.FAILED and job["error"]["remedy"] == "use other gammas"
