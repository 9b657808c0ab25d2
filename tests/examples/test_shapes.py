"""The training of `shapes`, small enough for a test: it learns, continues after an interruption, is reproducible."""

import shutil
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
from draw import Drawing, draw, random_scene
from sides import Sides

import ebca
from ebca.bench.alignment.scenes import UNSEEN, Scene, Thing
from ebca.export.api import export_checkpoint
from ebca.export.checkpoint.load import load_checkpoint

SMOKE = trainer.Recipe(
    batch=8,
    vae_batch=8,
    vae_steps=120,
    images=256,
    unet_steps=80,
    relation_images=128,
    relation_steps=20,
    checkpoint_every=40,
)
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
    # An untrained model predicts zero; the mean min-SNR weight over the timesteps is about a half.
    assert len(unet) == 80 and unet[-20:].mean() < 0.5 * unet[:10].mean()


def test_it_writes_images_of_its_progress(trained: Path) -> None:
    names = {file.name for file in trained.glob("*.png")}
    curves = {"loss_vae.png", "loss_unet.png", "loss_relations.png"}
    samples = {"samples_unet_00040.png", "samples_unet_00080.png", "samples_relations_00020.png"}
    assert names == {"vae.png", *curves, *samples}


def test_a_stopped_run_goes_on_to_the_same_losses(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = trainer._save_curve

    def stop(folder: Path, name: str, losses: list[float]) -> None:
        if name == "unet":
            raise KeyboardInterrupt
        curve(folder, name, losses)

    # The VAE's course was over.
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/vae.pt", *(file.name for file in trained.glob("*.json"))):
        shutil.copy(trained / name, tmp_path / name)
    monkeypatch.setattr(trainer, "_save_curve", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(SMOKE, tmp_path, CPU)
    monkeypatch.setattr(trainer, "_save_curve", curve)
    trainer.train(SMOKE, tmp_path, CPU)
    for name in ("unet", "relations"):
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


RELATED = [
    Scene((Thing("red", "circle"), Thing("blue", "star")), "left of"),
    Scene((Thing("red", "circle"), Thing("blue", "star")), "above"),
    Scene((Thing("red", "circle"), Thing("blue", "star"))),
]


def _sides() -> tuple[Sides, torch.Tensor, torch.Tensor]:
    """Marks of three scenes, embeddings without any, and the axes."""
    sides = Sides(RELATED, 12, 16, 0, CPU)
    hidden = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    return sides, hidden - hidden @ sides._axes @ sides._axes.T, sides._axes


def test_marks_lie_on_the_words_of_both_things_and_point_apart() -> None:
    sides, hidden, axes = _sides()
    marked, missed = sides.mark(hidden, torch.arange(3), torch.ones(3, dtype=torch.bool), 0.0)
    put = (marked - hidden) @ axes
    # begin, a, red, circle, left, of, a, blue, star, end
    for row, direction, second in ((0, (-1.0, 0.0), (7, 8)), (1, (0.0, -1.0), (6, 7))):
        first = put[row, 2]
        assert torch.allclose(first / first.norm(), torch.tensor(direction), atol=1e-5)
        for word, sign in ((2, 1), (3, 1), (second[0], -1), (second[1], -1)):
            assert torch.allclose(put[row, word], sign * first, atol=1e-4)
        others = [i for i in range(12) if i not in (2, 3, *second)]
        assert put[row, others].abs().max() < 1e-5
    assert torch.equal(marked[2], hidden[2]) and missed > 1


def test_marks_fade_the_first_ones_first() -> None:
    sides, hidden, axes = _sides()
    everyone = torch.ones(3, dtype=torch.bool)
    loudness = []
    for progress in (0.0, 0.2, 0.3, 0.4, 1.0):
        put = (sides.mark(hidden, torch.arange(3), everyone, progress)[0] - hidden) @ axes
        loudness.append((float(put[0, 2].norm()), float(put[0, 7].norm())))
    assert loudness[0][0] > loudness[1][0] > 0 == loudness[2][0]
    assert loudness[1][1] > loudness[2][1] > 0 == loudness[3][1] == loudness[4][1]


def test_a_text_model_that_writes_the_marks_misses_nothing_and_no_caption_has_none() -> None:
    sides, hidden, axes = _sides()
    everyone, nobody = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    written = hidden.clone()
    for row, words, side in ((0, (7, 8), (1.0, 0.0)), (1, (6, 7), (0.0, 1.0))):
        written[row, words, :] += 6 * torch.tensor(side) @ axes.T
    assert sides.mark(written, torch.arange(3), everyone, 1.0)[1] < 1e-8
    marked, missed = sides.mark(hidden, torch.arange(3), nobody, 0.0)
    assert torch.equal(marked, hidden) and missed == 0


def test_drawing_never_shows_unseen_pairs_in_training() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3):
        for _ in range(200):
            assert UNSEEN.isdisjoint(random_scene(rng, count).things)


def test_a_seed_gives_the_same_picture() -> None:
    images = []
    for _ in range(2):
        rng = np.random.default_rng(9)
        images.append(draw(rng, random_scene(rng, 3))[0])
    np.testing.assert_array_equal(*images)


def test_processes_draw_the_same_images() -> None:
    jobs = [((0, 4, start), 3, np.array([0.2, 0.4, 0.4]), 0.5) for start in (0, 64)]
    with Drawing(0) as here, Drawing(2) as there:
        for (a, scenes), (b, others) in zip(here.batches(jobs), there.batches(jobs), strict=True):
            np.testing.assert_array_equal(a, b)
            assert scenes == others


def test_a_second_model_takes_the_vae_of_the_first(tmp_path: Path) -> None:
    given = Path(trainer.__file__).parent / "shapes"
    recipe = trainer.Recipe(
        seed=1, vae_from=str(given), batch=2, images=8, unet_steps=2, relation_images=8, relation_steps=1
    )
    trainer.train(recipe, tmp_path, CPU)
    first, second = (load_checkpoint(str(folder)).vae for folder in (given, tmp_path / "shapes"))
    assert first is not None and second is not None
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config["scaling_factor"] == second.config["scaling_factor"]
    assert not (tmp_path / "loss_vae.csv").exists()
