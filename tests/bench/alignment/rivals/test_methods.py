"""The methods in PyTorch against the runtime, the reference of exclusive attention, and their own equations."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
import torch

import ebca
from ebca.bench.alignment.detector import Found
from ebca.bench.alignment.prompts import KINDS, prompts
from ebca.bench.alignment.rivals.attention import Attention, Guide, Run
from ebca.bench.alignment.rivals.ebcu import Ebcu
from ebca.bench.alignment.rivals.excite import AttendAndExcite, Excitation
from ebca.bench.alignment.rivals.exclusive import Both, Exclusion, Exclusive, exclusive_bias
from ebca.bench.alignment.rivals.layout import own_layout
from ebca.bench.alignment.rivals.methods import GRIDS, METHODS, guide
from ebca.bench.alignment.rivals.model import Model
from ebca.bench.alignment.rivals.oracle import Oracle, Told
from ebca.bench.alignment.rivals.regulation import AttentionRegulation, Regulation
from ebca.bench.alignment.rivals.sampler import Sampling, sample
from ebca.bench.alignment.scenes import Scene, parse
from ebca.errors import ModelError, ParameterError
from ebca.plugins.exclusive_attention import reference
from ebca.runtime.images.outputs import to_bytes

SEEDS = [3, 4]
QUICK = Sampling("ddim", 3)
TWO = parse("a red circle and a blue star")
THREE = parse("a yellow square, a purple cross and a cyan heart")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Model()
    torch.set_num_threads(threads)


def _images(model: Model, method: Guide, scenes: Sequence[Scene], sampling: Sampling = QUICK) -> np.ndarray:
    return sample(model, method, scenes, SEEDS[: len(scenes)], sampling).astype(int)


@pytest.mark.parametrize(
    ("sampling", "gammas"),
    [(Sampling("ddim", 6), (0, 0)), (Sampling("pndm", 6, 7.5), (0, 0)), (Sampling("ddim", 6), (0.01, 0.003))],
    ids=["ddim", "pndm", "ebcu"],
)
def test_images_are_those_of_the_runtime(
    model: Model, engine: ebca.Engine, sampling: Sampling, gammas: tuple[float, float]
) -> None:
    with engine.session(batch=2) as session:
        made = session.generate(
            [TWO.caption()] * 2,
            scheduler=sampling.scheduler,
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            seed=SEEDS,
            gamma_attn=gammas[0],
            gamma_norm=gammas[1],
            output="np",
        )
    difference = abs(
        _images(model, Ebcu(*gammas) if any(gammas) else Guide(), [TWO, TWO], sampling) - to_bytes(made.images)
    )
    # Both compute in float32; sums in another order grow over the evaluations, mostly at edges.
    assert difference.max() <= 3 and difference.mean() < 0.05


def test_tokens_are_those_of_the_runtime(model: Model, engine: ebca.Engine) -> None:
    for kind in KINDS:
        captions = [scene.caption() for scene in prompts(kind, "development")[:20]]
        expected = engine.tokenizer.encode([*captions, ""]).ids.tolist()
        assert [model._words.ids(caption, 24) for caption in [*captions, ""]] == expected
    captions = model.encode([TWO])
    assert captions.groups[0].nonzero().tolist() == [[0, 2], [0, 3], [1, 6], [1, 7]]
    assert captions.subjects[0].nonzero().tolist() == [[0, 2], [0, 3], [0, 4], [1, 6], [1, 7], [1, 8]]
    assert captions.nouns[0].nonzero().tolist() == [[0, 3], [1, 7]] and captions.ends.tolist() == [8]


def test_the_bias_is_that_of_the_reference(model: Model) -> None:
    """Over several evaluations of rows with different numbers of subjects, from the same maps."""
    rng = np.random.default_rng(5)
    scenes = [THREE, TWO, Scene(TWO.things[:1]), THREE]
    captions, settings = model.encode(scenes), Exclusion(away=2.0, boost=3.0, window=0.2)
    run, method = Run(model, scenes, captions, 10), Exclusive(settings)
    method.begin(run)
    averages: list[np.ndarray | None] = [None] * len(scenes)
    for evaluation in range(3):
        maps = rng.uniform(0, 0.3, (2, len(scenes), 3, 64)) ** 2
        maps[:, 1, 2:] = maps[:, 2, 1:] = 0
        for layer in maps:
            method._note(torch.from_numpy(layer).float())
        method.after(run, evaluation)
        assert method._bias is not None
        for row, scene in enumerate(scenes):
            count = len(scene.things)
            expected = reference.exclusive_bias(
                maps[:, row, :count].reshape(2, count, 8, 8), averages[row], away=2.0, boost=3.0, window=0.2
            )
            averages[row] = expected.averages
            # float32 against float64.
            np.testing.assert_allclose(method._bias[row, :count].reshape(count, 8, 8), expected.bias, atol=1e-5)
            assert (method._bias[row, count:] == 0).all()


def test_a_row_of_maps_of_zeros_divides_by_nothing() -> None:
    bias = exclusive_bias(torch.zeros(1, 3, 8, 8), torch.tensor([3]), Exclusion())
    expected = reference.exclusive_bias(np.zeros((1, 3, 8, 8)), None, away=1.0, boost=1.5).bias
    np.testing.assert_allclose(bias[0], expected, atol=1e-6)


def test_methods_that_do_nothing_change_nothing(model: Model) -> None:
    scenes = [TWO, parse("a red circle left of a blue star")]
    base = _images(model, Guide(), scenes)
    for idle in (
        Exclusive(Exclusion(away=0, boost=0)),
        Exclusive(Exclusion(end=0)),
        AttentionRegulation(Regulation(until=0)),
    ):
        np.testing.assert_array_equal(_images(model, idle, scenes), base)
    one = [parse("a red circle")]
    np.testing.assert_array_equal(_images(model, Exclusive(), one), _images(model, Guide(), one))


def test_every_method_changes_images_and_none_affects_others(model: Model) -> None:
    """An image does not depend on which others are made with it."""
    base = _images(model, Guide(), [TWO, TWO])
    # With large steps, regulation jumps between edits, and rounding decides where it ends.
    regulation = AttentionRegulation(Regulation(rate=3.0))
    methods = (Exclusive(), Both(), Ebcu(0.02), AttendAndExcite(Excitation(refinements=2)), regulation)
    for method in methods:
        together = _images(model, method, [TWO, TWO])
        assert abs(together - base).max() > 0, method
        # Sums of other lengths round differently; gradients are multiplied by the step size.
        assert abs(_images(model, method, [TWO]) - together[:1]).mean() < 0.1, method


def test_exciting_lowers_the_loss_and_stops_when_it_is_low_enough(model: Model) -> None:
    method, scenes = AttendAndExcite(Excitation(scale=5.0)), [THREE, THREE]
    run = Run(model, scenes, model.encode(scenes), 25)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    rows, timestep = torch.arange(2), torch.tensor(700)

    def refined(enough: float) -> torch.Tensor:
        with torch.no_grad():
            return method._refined(run, timestep, latents, 5.0, enough)

    def losses(at: torch.Tensor) -> torch.Tensor:
        with Attention(run, method).installed(), torch.no_grad():
            return method._loss(run, timestep, at, rows)[0]

    before = losses(latents)
    with Attention(run, method).installed():
        assert torch.equal(refined(1.0), latents)
        moved = refined(float(before.min()) - 0.05)
    assert (losses(moved) < before).all()


def test_regulation_lowers_its_loss_and_keeps_the_ends(model: Model) -> None:
    method = AttentionRegulation(Regulation(rate=10.0, initial=0.0))
    run = Run(model, [THREE], model.encode([THREE]), 25)
    method.begin(run)
    scores = torch.randn(1, 2, 64, 24, generator=torch.Generator().manual_seed(0))
    at = method._words[:, None, None].expand(1, 2, 64, -1)
    edit = method._edit(scores, at)
    none = torch.zeros(1, 2, 9, 6)
    plain, edited = (s.softmax(-1).gather(-1, at) for s in (scores, scores.scatter_add(-1, at, edit)))
    assert (method._losses(edited, none) < method._losses(plain, none)).all()
    shares, end = method.attend(run, 6, scores), int(run.captions.ends[0])
    ends = [0, end]
    torch.testing.assert_close(shares[..., ends], scores.softmax(-1)[..., ends])
    assert not torch.allclose(shares, scores.softmax(-1))


def test_the_oracle_hides_every_subject_from_the_places_of_others(model: Model) -> None:
    places = torch.tensor([[[16.0, 16.0, 9.0], [48.0, 48.0, 9.0]]])
    run = Run(model, [TWO], model.encode([TWO]), 25, places)
    method = Oracle(Told())
    method.begin(run)
    shares = method.attend(run, 6, torch.zeros(1, 2, 64, 24))[0, 0].reshape(8, 8, 24)
    assert shares[1, 1, [2, 3]].min() > 0 and shares[1, 1, [6, 7]].max() == 0
    assert shares[6, 6, [2, 3]].max() == 0 and shares[6, 6, [6, 7]].min() > 0
    with pytest.raises(ParameterError, match="was not told"):
        method.begin(Run(model, [TWO], model.encode([TWO]), 25))


def test_missing_things_get_a_free_place() -> None:
    found = [Found("red", "circle", 20.0, 20.0, 300, 0.9)]
    (x, y, r), (x2, y2, r2) = own_layout(TWO, found, 7)
    assert (x, y) == (20.0, 20.0) and np.hypot(x - x2, y - y2) > r + r2
    assert own_layout(TWO, found, 7) == own_layout(TWO, found, 7)


def test_every_setting_of_the_grids_is_one_of_its_method() -> None:
    for method in METHODS:
        for settings in GRIDS[method]:
            assert isinstance(guide(method, settings), Guide)
    with pytest.raises(ParameterError, match="wrong settings of exclusive"):
        guide("exclusive", {"lambda": 1})
    with pytest.raises(ParameterError, match="no method 'x'"):
        guide("x", {})


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "xl" / "text_encoder_2").mkdir(parents=True)
    (tmp_path / "xl" / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match="has two text encoders"):
        Model(tmp_path / "xl")
    with pytest.raises(ModelError, match="is not a pipeline folder"):
        Model(tmp_path)
