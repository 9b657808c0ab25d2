"""Previews: what they show of latents that a trained VAE encodes, and the file that ebca-run keeps replacing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.runtime.cli.run import main
from ebca.runtime.images.preview import Preview


@pytest.fixture(scope="module")
def session(shapes_dir: Path) -> Iterator[ebca.Session]:
    """Of the model of shapes, whose VAE is trained."""
    with ebca.load(shapes_dir, backend="onnxruntime") as engine, engine.session() as session:
        yield session


def test_the_preview_of_an_image_has_its_colours(session: ebca.Session) -> None:
    """Means over 4 x 4 latents of an image that the map was not fitted to: 0.05 is a step that one sees beside the
    other; a map of zeros is off by 0.2."""
    drawn = session.generate("a red circle and a blue square", steps=8, seed=1, output="np")
    preview = session.preview()
    shown = preview.colours(drawn.latents)
    n, rows, columns, _ = shown.shape
    expected = drawn.images.reshape(n, rows, drawn.images.shape[1] // rows, columns, -1, 3).mean((2, 4))

    def coarse(colours: np.ndarray) -> np.ndarray:
        return colours[:, : rows // 4 * 4, : columns // 4 * 4].reshape(n, rows // 4, 4, columns // 4, 4, 3).mean((2, 4))

    error = float(np.abs(coarse(shown) - coarse(expected)).mean())
    flat = float(np.abs(coarse(expected) - coarse(expected).mean((1, 2), keepdims=True)).mean())
    assert error <= 0.05
    assert error <= flat / 2


def test_it_is_fitted_once_and_shows_full_size(session: ebca.Session) -> None:
    preview = session.preview()
    assert session.preview() is preview
    shown: list[Image.Image] = []
    session.generate(
        "a red circle", steps=2, output="latents", on_step=lambda info: shown.extend(preview(info.latents))
    )
    assert [image.size for image in shown] == [(session.width, session.height)] * 2


def test_large_latents_are_brought_to_unit_variance() -> None:
    factors = np.array([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.5, 0.5, 0.5]], np.float32)
    latents = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)
    latents /= np.sqrt(np.square(latents).mean((1, 2, 3), keepdims=True))
    preview = Preview(factors, 8)
    assert np.allclose(preview.colours(14 * latents), preview.colours(latents), atol=1e-6)
    small = preview.colours(latents / 2)
    assert np.allclose(small[..., 0], 0.5 + 0.05 * latents[:, 0], atol=1e-6) and np.allclose(small[..., 2], 0.5)


def test_a_session_in_a_call_is_refused(session: ebca.Session) -> None:
    with pytest.raises(ebca.ParameterError, match="call"):
        session.generate("a red circle", steps=1, on_step=lambda info: session.preview() is None)


def test_an_engine_without_vae_is_refused(tiny_unet_dir: Path) -> None:
    with (
        ebca.load(tiny_unet_dir, backend="onnxruntime") as engine,
        engine.session(64, 64) as session,
        pytest.raises(ebca.EngineError, match="has no VAE"),
    ):
        session.preview()


def test_the_command_line_keeps_replacing_a_file(
    shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bytes] = []
    from ebca.runtime.cli import job

    save = job.save_preview

    def watch(image: Image.Image, file: Path) -> None:
        save(image, file)
        seen.append(file.read_bytes())

    monkeypatch.setattr(job, "save_preview", watch)
    common = ["--engine", str(shapes_dir), "--backend", "onnxruntime", "--prompt", "a red circle", "--quiet"]
    common += ["--steps", "3", "--output-dir", str(tmp_path)]
    assert main([*common, "--scheduler", "ddim", "--preview", "now.png"]) == 0
    assert len(seen) == 3 and len(set(seen)) == 3
    assert (tmp_path / "now.png").read_bytes() == seen[-1]
    capsys.readouterr()
    # Not over another result, and not as another kind of file.
    assert main([*common, "--output", "one.png", "--preview", "one.png"]) == 1
    assert main([*common, "--preview", "now.txt"]) == 1
    assert "--preview" in capsys.readouterr().err
