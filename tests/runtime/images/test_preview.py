"""Previews: what they show of latents, and the file that ebca-run keeps replacing."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.runtime.cli.run import main
from ebca.runtime.images.preview import LinearPreview


@pytest.fixture(scope="module")
def session(shapes_dir: Path) -> Iterator[ebca.Session]:
    """Of the model of shapes, whose VAE is trained."""
    with ebca.load(shapes_dir, backend="onnxruntime") as engine, engine.session() as session:
        yield session


class LinearVae:
    """Stands in for an engine whose decoder paints each latent as a square of one colour, linear in the latents."""

    factors = np.array([[0.2, 0, 0.1], [0, -0.1, 0.05], [0.03, 0.06, -0.2], [0, 0, 0], [0.1, -0.2, 0.3]], np.float32)
    backend = SimpleNamespace(name="onnxruntime")

    def __init__(self, plans: dict[str, Any] | None = None) -> None:
        vae = SimpleNamespace(downscale=4, latent_channels=4)
        self.manifest = SimpleNamespace(vae=vae, plans=plans or {})
        self.seen: list[tuple[int, ...]] = []

    def decode(self, latents: np.ndarray) -> np.ndarray:
        self.seen.append(latents.shape)
        colours = latents.transpose(0, 2, 3, 1) @ self.factors[:-1] + self.factors[-1]
        return colours.transpose(0, 3, 1, 2).repeat(4, 2).repeat(4, 3)


@pytest.mark.parametrize(
    ("plans", "shape"), [({}, (5, 4, 12, 12)), ({"onnxruntime": None}, (1, 4, 8, 16))], ids=["any size", "plans"]
)
def test_a_linear_decoder_is_found(plans: dict[str, Any], shape: tuple[int, ...]) -> None:
    """The ridge makes weights about 1% too small. Plans are asked for the session's size only."""
    vae: Any = LinearVae(plans)
    preview = LinearPreview.fit(vae, (32, 64))
    assert vae.seen == [shape]
    # Decoders give -1 to 1, images are 0 to 1.
    expected = LinearVae.factors / 2
    expected[-1] += 0.5
    assert np.abs(preview.factors - expected).max() <= 0.01
    latents = np.random.default_rng(1).standard_normal((2, 4, 3, 5)).astype(np.float32)
    exact = np.clip(latents.transpose(0, 2, 3, 1) @ expected[:-1] + expected[-1], 0, 1)
    assert np.abs(preview.colours(latents) - exact).max() <= 0.02


def test_it_is_fitted_once_and_shows_full_size(session: ebca.Session) -> None:
    preview = session.preview()
    assert session.preview() is preview
    shown: list[Image.Image] = []
    ask: dict[str, Any] = {"steps": 2, "scheduler": "ddim", "output": "latents"}
    session.generate("a red circle", on_step=lambda info: shown.extend(preview(info.unit_latents)), **ask)
    assert [image.size for image in shown] == [(session.width, session.height)] * 2


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_latents_are_scaled_as_the_next_evaluation_does(session: ebca.Session, scheduler: str) -> None:
    """Those of euler begin at 14 times unit variance."""
    sizes: list[float] = []
    ask: dict[str, Any] = {"steps": 4, "seed": 1, "scheduler": scheduler, "output": "latents"}
    made = session.generate("a red circle", on_step=lambda info: sizes.append(info.unit_latents.std()), **ask)
    assert len(sizes) == 4 and max(sizes) < 2 * made.latents.std()
    assert sizes[-1] == pytest.approx(made.latents.std())


def test_a_session_in_a_call_is_refused(session: ebca.Session) -> None:
    with pytest.raises(ebca.ParameterError, match="call"):
        session.generate("a red circle", steps=1, on_step=lambda info: session.preview() is None)


def test_an_engine_without_vae_is_refused() -> None:
    unet: Any = LinearVae()
    unet.manifest.vae = None
    with pytest.raises(ebca.EngineError, match="has no VAE"):
        LinearPreview.fit(unet, (64, 64))


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
