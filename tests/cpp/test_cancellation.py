"""Cancelling: at every stage of a call, before it, and the images that the session makes afterwards."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ebca.errors import CancelledError
from ebca.runtime import native

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def session(shapes: native.Engine) -> Iterator[native.Session]:
    session = shapes.session(batch=8)
    yield session
    session.close()


@pytest.fixture(scope="module")
def expected(session: native.Session) -> np.ndarray:
    return image_of(session)


def image_of(session: native.Session) -> np.ndarray:
    pixels = session.generate(PROMPT, steps=1, seed=1).pixels
    assert pixels is not None
    return pixels


class Later:
    """Cancels a session in another thread, some time after `start`."""

    def __init__(self, session: native.Session, seconds: float) -> None:
        self.at = 0.0
        self._session, self._seconds, self._started = session, seconds, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def start(self) -> None:
        self._started.set()

    def _run(self) -> None:
        assert self._started.wait(60)
        time.sleep(self._seconds)
        self.at = time.monotonic()
        self._session.cancel()

    def seconds_since(self) -> float:
        now = time.monotonic()
        self._thread.join()
        return now - self.at


def test_a_request_before_a_call_cancels_it_and_no_other(session: native.Session, expected: np.ndarray) -> None:
    session.cancel()
    with pytest.raises(CancelledError, match="before the first evaluation"):
        session.generate(PROMPT, steps=1)
    assert np.array_equal(image_of(session), expected)


def test_a_request_can_be_forgotten(session: native.Session, expected: np.ndarray) -> None:
    session.cancel()
    session.reset_cancel()
    assert np.array_equal(image_of(session), expected)


def test_a_request_that_a_failed_call_took_is_gone(session: native.Session, expected: np.ndarray) -> None:
    def cancel_and_fail(info: object) -> None:
        session.cancel()
        raise ValueError("from the callback")

    with pytest.raises(ValueError, match="from the callback"):
        session.generate(PROMPT, steps=1, on_step=cancel_and_fail)
    assert np.array_equal(image_of(session), expected)


def test_decoding_is_cancelled_between_the_images_of_a_batch(session: native.Session, expected: np.ndarray) -> None:
    later = Later(session, 0.01)
    with pytest.raises(CancelledError, match="cancelled in vae_decoder"):
        session.generate(PROMPT, steps=1, seed=1, on_step=lambda info: later.start())
    assert later.seconds_since() < 1
    assert np.array_equal(image_of(session), expected)


def test_encoding_images_is_cancelled(session: native.Session, expected: np.ndarray) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    said = set()
    for milliseconds in (2, 4, 8, 16, 24):
        later = Later(session, milliseconds / 1000)
        later.start()
        try:
            session.invert(image, PROMPT, steps=2)
        except CancelledError as error:
            said.add(str(error))
        later.seconds_since()
        session.reset_cancel()
    assert "cancelled in vae_encoder" in said, said
    assert np.array_equal(image_of(session), expected)


def test_texts_are_cancelled(library: native.Library, shapes_dir: Path) -> None:
    hook: list[Callable[[], None]] = []
    with library.open(shapes_dir, log=lambda level, text: hook[0]()) as engine, engine.session() as session:
        hook.append(session.cancel)
        # The log receives a warning that the prompt is cut off.
        with pytest.raises(CancelledError, match="cancelled in text_encoder"):
            session.generate("circle " * 100, long_prompts=False, steps=1)


def test_a_graph_that_runs_is_stopped_in_less_than_an_evaluation(shapes: native.Engine) -> None:
    with shapes.session(128, 128) as session:
        call = {"steps": 2, "seed": 1, "output": "latents"}
        whole = session.generate(PROMPT, **call)
        evaluation = min(whole.unet_seconds)
        said = []
        for share in (0.2, 0.5):
            later = Later(session, share * evaluation)
            with pytest.raises(CancelledError) as caught:
                session.generate(PROMPT, on_step=lambda info, later=later: later.start(), **call)
            took = later.seconds_since()
            said.append(str(caught.value))
            print(f"{said[-1]}: {took * 1000:.0f} ms of {evaluation * 1000:.0f} ms")
            # Generous: other processes share the machine.
            assert took < 2 * evaluation
            assert np.array_equal(session.generate(PROMPT, **call).latents, whole.latents)
        # In the graph itself, not after it.
        assert any("cancelled in segment_" in text for text in said), said
