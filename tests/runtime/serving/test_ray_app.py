"""The application on Ray Serve, with two engine replicas on this machine."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from helpers.serving import eventually

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

REQUEST = {"prompt": "a red circle and a blue square", "seed": 1, "steps": 5}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    from ebca.runtime.serving.ray_app import Options, build

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Workers import this package, not the tests.
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
        _temp_dir=str(tmp_path_factory.mktemp("r")),
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    options = Options(
        engine="shapes", device="cpu", threads=1, replicas=2, grace=5, data_dir=str(tmp_path_factory.mktemp("data"))
    )
    serve.run(build(options), name="ebca")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    serve.shutdown()
    ray.shutdown()


def replicas() -> list[psutil.Process]:
    """The processes of engine replicas that this test has started."""
    children = psutil.Process().children(recursive=True)
    return [one for one in children if "EngineReplica" in " ".join(one.cmdline())]


def test_an_image_is_that_of_a_direct_run(client, served_engine, tmp_path):
    job = client.post("/v1/generate", json=REQUEST, params={"wait": True}).json()
    assert job["state"] == "done"
    (file,) = served_engine.generate(**REQUEST).save(tmp_path / "direct.png")
    assert client.get(job["images"][0]).content == Path(file).read_bytes()
    assert client.get("/v1/model").json()["model"] == "shapes"


def test_events_are_streamed_and_jobs_cancelled(client):
    job = client.post("/v1/generate", json={**REQUEST, "steps": 150, "num_images": 8}).headers["location"]
    seen = []
    with client.stream("GET", f"{job}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                seen.append(line[7:])
            if line.startswith("data: ") and seen[-1] == "progress" and json.loads(line[6:])["done"] == 2:
                client.delete(job)
    assert seen[-1] == "cancelled" and seen.count("progress") < 100
    assert "steps is 1000" in client.post("/v1/generate", json={**REQUEST, "steps": 1000}).text


def test_a_job_survives_the_end_of_its_replica(client, served_engine, tmp_path):
    long = {**REQUEST, "steps": 100, "num_images": 4}
    jobs = [client.post("/v1/generate", json=long).headers["location"] for _ in range(2)]
    eventually(lambda: all(client.get(job).json()["progress"]["done"] > 3 for job in jobs), 60)
    found = replicas()
    assert len(found) == 2
    os.kill(found[0].pid, signal.SIGKILL)
    eventually(lambda: all(client.get(job).json()["state"] == "done" for job in jobs), 90)
    direct = served_engine.generate(**{**REQUEST, "steps": 100}, num_images=4).save(tmp_path / "direct.png")
    for job in jobs:
        images = client.get(job).json()["images"]
        assert [client.get(image).content for image in images] == [file.read_bytes() for file in direct]
