"""Subjects of a request: their checks, their tokens, and their regions on the map."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ebca
from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.entries import SubjectLayers
from ebca.runtime.conditioning import subjects as under_test
from ebca.runtime.conditioning.prompts import Conditioning
from ebca.runtime.conditioning.subjects import Resolved, Subjects
from ebca.runtime.schema import parameters as rules
from ebca.runtime.text.tokenizer import Tokenizer

PROMPT = "a red circle and a blue square"


@pytest.fixture(scope="module")
def tokenizer(shapes_dir: Path) -> Tokenizer:
    directory = open_directory(shapes_dir)
    spec = directory.manifest.tokenizer
    assert spec is not None
    # As long as that of Stable Diffusion.
    return Tokenizer.load(directory.path / spec.file, {**spec.info, "model_max_length": 77})


@pytest.fixture
def find(tokenizer: Tokenizer) -> Any:
    """Check and resolve the fields of subjects for a prompt and images of 64 x 96 pixels."""

    def found(prompt: Any, batch: int = 1, grid: tuple[int, int] = (8, 12), **fields: Any) -> Resolved:
        subjects = Subjects(**fields)
        under_test.check(subjects, Conditioning(prompt), batch)
        strengths = under_test.strengths(subjects, 2, 3, "pndm")
        return under_test.resolve(subjects, prompt, tokenizer, strengths, batch=batch, grid=grid, size=(64, 96))

    return found


def groups(found: Resolved, image: int = 0) -> list[int]:
    """Of the tokens after the start token, up to the last that has one."""
    assert found.inputs is not None
    row = found.inputs.token_groups[image].tolist()
    return row[1 : max(i for i, group in enumerate(row) if group >= 0) + 1]


def test_named_subjects_are_groups_of_tokens(find: Any, tokenizer: Tokenizer) -> None:
    found = find(PROMPT, subjects=["red circle", "Blue  Square"], subject_exclusion=[0, 1, 2], subject_window=0.2)
    assert groups(found) == [-1, 0, 0, 0, -1, 1, 1, 1]
    inputs = found.inputs
    assert inputs.token_groups.shape == (1, tokenizer.max_length) and inputs.token_groups.dtype == np.int32
    assert inputs.counts.tolist() == [2] and inputs.counts.dtype == np.int32
    assert inputs.strengths.tolist() == [[0, 1.5], [1, 1.5], [2, 1.5]] and inputs.strengths.dtype == np.float32
    assert inputs.window == 0.2
    assert inputs.regions.shape == (1, 2, 8, 12) and not inputs.fixed.any()
    assert found.recorded == ["red circle", "Blue  Square"]


def test_subjects_are_found_in_the_prompt_and_recorded_as_if_named(find: Any) -> None:
    found = find(PROMPT, subjects="auto")
    assert found.recorded == ["red circle", "blue square"]
    again = find(PROMPT, subjects=found.recorded)
    assert np.array_equal(again.inputs.token_groups, found.inputs.token_groups)


@pytest.mark.parametrize("prompt", ["a red circle", "", "circle"])
def test_nothing_happens_where_fewer_than_two_are_found(find: Any, prompt: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find(prompt, subjects="auto")
        assert found.inputs is None and found.recorded == []
        assert find(prompt, subjects=found.recorded) == found


def test_a_single_named_subject_is_left_out_with_a_warning(find: Any) -> None:
    with pytest.warns(UserWarning, match="^'red circle' is the only subject of the prompt 'a red circle'; nothing is"):
        assert find("a red circle", subjects=["red circle"]).inputs is None
    found = find("a red circle", regions={"red circle": (0, 0, 0.5, 1)})
    assert found.inputs.counts.tolist() == [1] and found.recorded == ["red circle"]


def test_the_token_after_a_phrase_is_a_subjects_unless_another_has_it(find: Any) -> None:
    """A comma, a word or the end token; not the word of another subject, whatever the order of the subjects."""
    assert groups(find("red circle , blue square", subjects=["red circle", "blue square"])) == [0, 0, 0, 1, 1, 1]
    assert groups(find("red circle blue square", subjects=["red circle", "blue square"])) == [0, 0, 1, 1, 1]
    assert groups(find("red circle blue square", subjects=["blue square", "red circle"])) == [1, 1, 0, 0, 0]


def test_a_phrase_takes_its_first_free_occurrence(find: Any) -> None:
    prompt = "a red circle and a circle and a red circle"
    assert groups(find(prompt, subjects=["circle", "red circle"])) == [-1, 1, 1, 1, -1, 0, 0]
    assert groups(find(prompt, subjects=["red circle", "red circle"])) == [-1, 0, 0, 0, -1, -1, -1, -1, 1, 1, 1]
    assert groups(find(prompt, subjects="auto")) == [-1, 0, 0, 0, -1, 1, 1, -1, 2, 2, 2]


def test_several_prompts_have_lists_of_their_own(find: Any) -> None:
    prompts = [PROMPT, "a green star", "a heart, a star and a circle"]
    auto = find(prompts, 3, subjects="auto")
    assert auto.recorded == [["red circle", "blue square"], [], ["heart", "star", "circle"]]
    again = find(prompts, 3, subjects=auto.recorded)
    assert again.phrases == auto.phrases and again.inputs.counts.tolist() == [2, 0, 3]
    assert np.array_equal(again.inputs.token_groups, auto.inputs.token_groups)
    assert (again.inputs.token_groups[1] == -1).all() and again.inputs.fixed.shape == (3, 3)
    assert find(PROMPT, 2, subjects=["red circle", "blue square"]).inputs.counts.tolist() == [2, 2]


def test_a_region_makes_a_subject_and_wins_over_those_that_are_found(find: Any) -> None:
    box = (0, 0, 0.5, 1)
    assert find(PROMPT, regions={"circle": box, "blue square": box}).recorded == ["circle", "blue square"]
    found = find(PROMPT, subjects="auto", regions={"RED circle": box})
    assert found.recorded == ["red circle", "blue square"] and found.inputs.fixed.tolist() == [[True, False]]
    # "red circle" has no words left.
    found = find(PROMPT, subjects="auto", regions={"circle": box})
    assert found.recorded == ["blue square", "circle"] and found.inputs.fixed.tolist() == [[False, True]]
    again = find(PROMPT, subjects=found.recorded, regions={"circle": box})
    assert np.array_equal(again.inputs.token_groups, found.inputs.token_groups)


def test_a_region_belongs_to_the_images_whose_prompt_has_its_phrase(find: Any) -> None:
    found = find([PROMPT, "a star and a heart"], 2, subjects="auto", regions={"star": (0, 0, 1, 1)})
    assert found.inputs.fixed.tolist() == [[False, False], [True, False]]
    assert found.inputs.regions[1, 0].min() == 1 and found.inputs.regions[0].max() == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_box_covers_its_area_exactly(edges: list[float], grid: tuple[int, int]) -> None:
    low, high = sorted(edges)
    cells = under_test.coverage("x", (low, 0, high, 1), (8, 8), grid)
    # The area in cells; float32 has 6e-8, and 1e-6 leaves room for 81 of them.
    assert cells.sum() == pytest.approx((high - low) * grid[0] * grid[1], abs=1e-5 * grid[0] * grid[1] * 0.1 + 1e-6)
    assert cells.shape == grid and cells.dtype == np.float32 and cells.min() >= 0 and cells.max() <= 1


def test_a_box_covers_cells_in_part(find: Any) -> None:
    found = find(PROMPT, grid=(2, 4), regions={"circle": (0.125, 0.25, 0.5, 1)})
    assert found.inputs.regions[0, 0].tolist() == [[0.25, 0.5, 0, 0], [0.5, 1, 0, 0]]


def test_a_mask_is_averaged_over_cells(find: Any, tmp_path: Path) -> None:
    drawn = np.zeros((32, 48), np.uint8)
    drawn[:, :18] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    expected = np.zeros((8, 12), np.float32)
    # 18 of 48 columns are 4.5 of 12 cells; bicubic resizing to the image's size keeps the edge within a pixel of 8.
    expected[:, :4], expected[:, 4] = 1, 0.5
    for mask in (tmp_path / "mask.png", str(tmp_path / "mask.png"), drawn, Image.fromarray(drawn), drawn > 0):
        found = find(PROMPT, regions={"circle": mask}).inputs.regions[0, 0]
        assert np.abs(found - expected).max() <= 1 / 8
    exact = np.zeros((64, 96), bool)
    exact[:4, :8] = True
    assert find(PROMPT, regions={"circle": exact}).inputs.regions[0, 0, 0].tolist() == [0.5] + [0] * 11


BOX = (0, 0, 1, 1)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"subjects": ["red cirlce"]}, f"the subject 'red cirlce' is not in the prompt '{PROMPT}'; did you mean 'red ci"),
    ({"subjects": ["elephant"]}, f"the subject 'elephant' is not in the prompt '{PROMPT}'; give words as they"),
    ({"subjects": ["red circle", "circle"]}, "the subjects 'red circle' and 'circle' share words of the prompt"),
    ({"subjects": ["square", "square"]}, f"'square' is named more often (2) than it stands in the prompt '{PROMPT}'"),
    ({"subjects": ["square", " "]}, "subjects has an empty phrase; give words of the prompt"),
    ({"subjects": ["square", 3]}, "subjects names 3 as a subject; give a text, such as 'red circle'"),
    ({"subjects": "red circle"}, "subjects is 'red circle'; give 'auto', a list of phrases of the prompt, or one such"),
    ({"subjects": 3}, "subjects is 3; give 'auto'"),
    ({"subjects": [["square"], ["circle"]]}, "subjects has 2 lists for a batch of 1; give one list of phrases for all"),
    ({"subjects": [["square"], "circle"]}, "subjects names ['square'] as a subject"),
    ({"regions": {"star": BOX}}, "the subject 'star' is not in the prompt"),
    ({"regions": {"": BOX}}, "regions has an empty phrase"),
    ({"regions": ["square"]}, "regions is ['square']; give a dict of phrases and their masks or boxes, such as {'red"),
    ({"regions": {"square": (0, 0, 0.5)}}, "the region of 'square' is the box (0, 0, 0.5); give left, top, right and"),
    ({"regions": {"square": (0.5, 0, 0.5, 1)}}, "the region of 'square' is the box (0.5, 0, 0.5, 1)"),
    ({"regions": {"square": (0, 0, 1, 1.5)}}, "the region of 'square' is the box (0, 0, 1, 1.5)"),
    ({"regions": {"square": (0, 0, 1, float("nan"))}}, "the region of 'square' is the box"),
    ({"regions": {"square": ["a", 0, 1, 1]}}, "the region of 'square' is not an array of numbers"),
    ({"regions": {"square": "nowhere.png"}}, "region of 'square' 'nowhere.png' does not exist; check the path"),
    ({"regions": {"square": 3}}, "region of 'square' is of type int"),
    ({"regions": {"square": np.ones((64, 64), bool)}}, "the region of 'square' is 64 x 64 pixels, the image 96 x 64;"),
    ({"regions": {"square": np.zeros((64, 96), bool)}}, "the region of 'square' is empty: no pixel is white"),
    ({"subject_exclusion": -1}, "subject_exclusion is -1 at evaluation 0; give numbers from 0 to 1000"),
    ({"subject_balance": [0, 1, 1001]}, "subject_balance is 1001 at evaluation 2; give numbers from 0 to 1000"),
    ({"subject_balance": ebca.Schedule.linear(1, -1)}, "subject_balance is -1 at evaluation 2"),
    ({"subject_exclusion": float("inf")}, "subject_exclusion: value inf at evaluation 0 is not a finite float32"),
    ({"subject_exclusion": [1, 2]}, "subject_exclusion has 2 values, but pndm with 2 steps makes 3 evaluations"),
    ({"subject_exclusion": "much"}, "subject_exclusion is 'much'; give a number"),
    ({"subject_window": 0}, "subject_window is 0; give a number from 0.01 to 10"),
    ({"subject_window": "wide"}, "subject_window is wide; give a finite number"),
    ({"grid": (33, 32)}, "the map on which subjects are placed has 33 x 32 positions; make a smaller image: the limit"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "line"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_one_line(find: Any, fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        find(PROMPT, **fields)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_subjects_need_a_text() -> None:
    embeds = np.zeros((1, 77, 8), np.float32)
    for fields in ({"subjects": "auto"}, {"regions": {"cat": BOX}}):
        with pytest.raises(ebca.ParameterError, match="subjects are words of the prompt, and prompt_embeds has none"):
            under_test.check(Subjects(**fields), Conditioning(prompt_embeds=embeds), 1)  # type: ignore[arg-type]
    under_test.check(Subjects(), Conditioning(prompt_embeds=embeds), 1)


def test_the_number_of_subjects_is_limited(find: Any) -> None:
    count = rules.MAX_SUBJECTS
    things = ["circle"] * count
    assert find(" and ".join(f"a {thing}" for thing in things), subjects="auto").inputs.counts.tolist() == [count]
    with pytest.raises(ebca.ParameterError, match=f"has {count + 1} subjects, and the limit is {count}; name those"):
        find(" and ".join(f"a {thing}" for thing in [*things, "star"]), subjects="auto")


def test_a_subject_beyond_the_length_limit_is_refused_and_not_found(find: Any) -> None:
    prompt = "a red circle and a blue square" + " and" * 80 + " a star"
    with pytest.raises(
        ebca.ParameterError, match="the subject 'star' is only beyond the first 75 tokens of the prompt"
    ):
        find(prompt, subjects=["circle", "star"])
    assert find(prompt, subjects="auto").recorded == ["red circle", "blue square"]
    prompt = "a circle and a circle" + " and" * 80 + " a circle"
    assert find(prompt, subjects="auto").recorded == ["circle", "circle"]


def test_the_map_is_that_of_the_biased_layers(tokenizer: Tokenizer) -> None:
    sizes: list[Any] = []
    layer = SimpleNamespace(size=lambda given: sizes.append(given) or (4, 6))
    unet = SimpleNamespace(layers=[None, layer], subject_layers=SubjectLayers((1,), (1,)))
    components: Any = SimpleNamespace(manifest=SimpleNamespace(unet=unet), tokenizer=tokenizer)
    asked = Subjects("auto")
    strengths = under_test.strengths(asked, 1, 1, "ddim")
    found = under_test.of_images(asked, Conditioning(PROMPT), components, strengths, (2, 4, 8, 12), (64, 96))
    assert found is not None and found.inputs is not None
    assert found.inputs.regions.shape == (2, 2, 4, 6) and sizes == [{"height": 8, "width": 12}]
    off = under_test.of_images(Subjects(), Conditioning(PROMPT), SimpleNamespace(), strengths, (2, 4, 8, 12), (64, 96))  # type: ignore[arg-type]
    assert off is None


WORDS = st.lists(st.sampled_from(["a", "and", "red", "circle", "blue", "square", ",", "with", "the"]), max_size=14)


@settings(max_examples=150, deadline=None)
@given(WORDS.map(" ".join) | st.text(max_size=30))
def test_what_is_found_in_any_prompt_can_be_named(tokenizer: Tokenizer, prompt: str) -> None:
    """A rerun from the recorded phrases has the same groups."""
    strengths = under_test.strengths(Subjects(), 1, 1, "ddim")

    def found(subjects: Any) -> Resolved:
        where: Any = {"batch": 1, "grid": (2, 2), "size": (8, 8)}
        return under_test.resolve(Subjects(subjects), prompt, tokenizer, strengths, **where)

    auto = found("auto")
    again = found(auto.recorded)
    assert auto.recorded == again.recorded
    if auto.inputs is not None:
        assert again.inputs is not None and np.array_equal(auto.inputs.token_groups, again.inputs.token_groups)
        used = auto.inputs.token_groups[auto.inputs.token_groups >= 0]
        assert set(used.tolist()) == set(range(auto.inputs.counts[0]))
