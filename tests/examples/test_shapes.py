"""The training of `shapes`, small enough for a test: it learns, it goes on after a stop, it repeats itself."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
import torch

sys.path.append(str(Path(__file__).parents[2] / "examples" / "shapes"))
import train as trainer
from draw import draw, random_scene

import ebca
from ebca.bench.alignment.scenes import UNSEEN
from ebca.export.checkpoint import load_checkpoint
from ebca.export.engine import export_checkpoint

SMOKE = trainer.Recipe(batch=8, vae_batch=8, vae_steps=120, pictures=256, unet_steps=80, checkpoint_every=40)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    trainer.train(SMOKE, folder, CPU)
    return folder


def _losses(folder: Path, name: str) -> np.ndarray:
    return np.loadtxt(folder / f"loss_{name}.csv")


def test_both_losses_fall(trained: Path) -> None:
    vae, unet = _losses(trained, "vae"), _losses(trained, "unet")
    assert len(vae) == 120 and vae[-10:].mean() < 0.5 * vae[:10].mean()
    # A net that knows nothing predicts zero; the mean weight of min-SNR over the timesteps is about a half.
    assert len(unet) == 80 and unet[-20:].mean() < 0.5 * unet[:10].mean()


def test_it_leaves_pictures_of_its_progress(trained: Path) -> None:
    names = {file.name for file in trained.glob("*.png")}
    assert names == {"vae.png", "loss_vae.png", "loss_unet.png", "samples_00040.png", "samples_00080.png"}


def test_a_stopped_run_goes_on_to_the_same_losses(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = trainer._save_curve

    def stop(folder: Path, name: str, losses: list[float]) -> None:
        if name == "unet":
            raise KeyboardInterrupt
        curve(folder, name, losses)

    monkeypatch.setattr(trainer, "_save_curve", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(SMOKE, tmp_path, CPU)
    monkeypatch.setattr(trainer, "_save_curve", curve)
    trainer.train(SMOKE, tmp_path, CPU)
    for name in ("vae", "unet"):
        # The same machine: sums in another order by threads change the last digits only.
        np.testing.assert_allclose(_losses(tmp_path, name), _losses(trained, name), rtol=1e-3)


def test_a_run_of_another_recipe_is_left_alone(trained: Path) -> None:
    with pytest.raises(SystemExit, match="another recipe"):
        trainer.train(replace(SMOKE, seed=1), trained, CPU)


def test_the_result_exports_and_paints(trained: Path, tmp_path: Path) -> None:
    directory = export_checkpoint(load_checkpoint(str(trained / "shapes")), tmp_path / "engine", precision="fp16")
    with ebca.load(directory) as engine, engine.session() as session:
        assert (session.height, session.width) == (64, 64)
        (image,) = session.generate("a red circle and a blue star", steps=2, seed=0, gamma_attn=0.01).images
    assert image.size == (64, 64)


def test_drawing_never_shows_unseen_pairs_in_training() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3):
        for _ in range(200):
            assert UNSEEN.isdisjoint(random_scene(rng, count).things)


def test_a_seed_gives_the_same_picture() -> None:
    pictures = []
    for _ in range(2):
        rng = np.random.default_rng(9)
        pictures.append(draw(rng, random_scene(rng, 3))[0])
    np.testing.assert_array_equal(*pictures)
