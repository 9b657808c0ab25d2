"""Nothing a caller sends is an internal error: calls made from the OpenAPI document, and hostile uploads.

EBCA_FUZZ_CASES and EBCA_FUZZ_UPLOADS set how many of each.
"""

import io
import os
import random
import struct
import zlib
from collections import Counter
from dataclasses import replace

import httpx
import pytest
from PIL import Image

from ebca.runtime.serving.runner import EngineRunner

schemathesis = pytest.importorskip("schemathesis")

CASES = int(os.environ.get("EBCA_FUZZ_CASES", "200"))
TEXT_BOMB = zlib.compress(bytes(50_000_000))
UPLOADS = int(os.environ.get("EBCA_FUZZ_UPLOADS", "100"))


class ShortRunner(EngineRunner):
    """Checks as always, and runs few steps only: a wrong value shows in the first one."""

    def run(self, work, on_progress):
        steps = min(work.request.get("steps") or 2, 2)
        return super().run(replace(work, request={**work.request, "steps": steps}), on_progress)


@pytest.fixture(scope="module")
def runner_class() -> type[EngineRunner]:
    return ShortRunner


def operations(client: httpx.Client) -> list:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    return [result.ok() for result in schema.get_all_operations()]


def test_calls_made_from_the_document(client):
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.generation.modes import GenerationMode

    found = operations(client)
    assert len(found) >= 14
    total = sum(10 if operation.body else 1 for operation in found)
    seen: Counter[int] = Counter()
    for operation in found:
        # Most can go wrong in what has a body.
        share = 10 if operation.body else 1
        most = max(CASES * share // total // 2, 2)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=most, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=strategy)
            def check(case) -> None:
                response = case.call(base_url=str(client.base_url), timeout=60)
                seen[response.status_code] += 1
                # A job may run out of the time that the call gave it.
                assert response.status_code < 500 or response.status_code == 504, (case, response.text)
                if response.status_code >= 400:
                    assert response.json()["error"]["problem"]

            try:
                check()
            except Exception as error:
                # An operation without parameters has no wrong calls.
                if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):
                    raise
    assert {200, 400, 404} <= seen.keys()
    assert seen.total() > CASES // 2


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says that it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def image_bytes(kind: str, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    image = Image.frombytes("RGB", (32, 32), rng.randbytes(3 * 32 * 32))
    image.save(buffer, kind)
    return buffer.getvalue()


def hostile(number: int) -> bytes:
    """A file that no careful program would open."""
    rng = random.Random(number)
    kind = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")[number % 6]
    data = bytearray(image_bytes(kind, rng))
    match number % 8:
        case 0:
            return bytes(data[: rng.randrange(len(data))])
        case 1:
            return bomb(rng.choice((1, 5_000, 2**31 - 1)), rng.choice((0, 5_000, 60_000, 2**31 - 1)))
        case 2:
            return rng.randbytes(rng.randrange(2_000))
        case 3:
            return bytes(data[:33]) + chunk(b"zTXt", b"a\0\0" + TEXT_BOMB) + bytes(data[33:])
        case _:
            # Headers are hit more often than pixels.
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data) if number % 2 else min(len(data), 80))] = rng.randrange(256)
            return bytes(data)


def test_hostile_uploads(client):
    rng = random.Random(0)
    statuses: dict[int, int] = {}
    for number in range(UPLOADS):
        data = hostile(number)
        # Nothing is made of those that are still images: there are too many steps.
        field, request = rng.choice(("image", "mask")), '{"prompt": "a", "steps": 100000}'
        files = {field: (rng.choice(("a.png", "../../a", "a\0b", "")) or "x", data), "request": (None, request)}
        response = client.post("/v1/generate", files=files)
        assert 400 <= response.status_code < 500, (number, response.text)
        assert response.json()["error"]["problem"]
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
    assert statuses[413] > 0 and statuses[400] > UPLOADS // 2
    assert client.get("/readyz").status_code == 200


def test_hostile_multipart_bodies(client):
    rng = random.Random(0)
    good = (
        b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"prompt": "a", "steps": 100000}\r\n'
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\nx\r\n--b--\r\n"
    )
    for _ in range(UPLOADS // 2):
        body = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(body))
            match rng.randrange(3):
                case 0:
                    body[at] = rng.randrange(256)
                case 1:
                    del body[at : at + rng.randrange(1, 30)]
                case _:
                    body[at:at] = rng.randbytes(rng.randrange(1, 30))
        headers = {"content-type": "multipart/form-data; boundary=b"}
        response = client.post("/v1/generate", content=bytes(body), headers=headers)
        assert 400 <= response.status_code < 500, (bytes(body), response.text)
