"""Exclusive attention: numpy against the float64 reference, its properties, and the kernel in Triton's interpreter."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.launcher import FakeLauncher
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ebca.errors import ParameterError
from ebca.plugins.energy_attention import MAX_BIAS
from ebca.plugins.exclusive_attention import MAX_STRENGTH, TENSORS, check_strengths, check_subjects, sizes, tables
from ebca.plugins.exclusive_attention.launches import BLOCK, launch
from ebca.plugins.exclusive_attention.reference import exclusive_bias
from ebca.plugins.exclusive_attention.windows import begin, exclude
from ebca.plugins.kernels.binaries import KernelSet
from ebca.plugins.kernels.launch import KernelLibrary

Arrays = dict[str, np.ndarray]

AWAY, BOOST = 2.0, 3.0
# Of the strengths at the first three evaluations.
FACTORS = np.array([1.0, 0.5, 0.25], np.float32)
BEYOND = np.array([0.0, 0.25, 0.5, 1.0], np.float32)

properties = settings(max_examples=40, deadline=None, derandomize=True)


def make_case(
    seed: int, h: int, w: int, subjects: Sequence[int], L: int = 2, S: int = 1, G: int = 0, fixed: Sequence[int] = ()
) -> Arrays:
    """Random maps of rows with so many subjects; everything that must be written starts as NaN, and so does what must
    not be read. fixed: groups whose place is given, in every row."""
    rng = np.random.default_rng(seed)
    R, G, N = len(subjects), G or max(subjects), h * w
    near, outside = tables(h, w)
    is_fixed = np.isin(np.arange(G), fixed)[None] & (np.arange(G) < np.reshape(subjects, (-1, 1)))
    beyond = np.where(is_fixed[..., None], rng.choice(BEYOND, (R, G, N)), np.float32("nan"))
    return {
        "step": np.zeros(1, np.int32),
        "subjects": check_subjects(subjects, G),
        "strengths": check_strengths(AWAY, BOOST) * FACTORS[:, None],
        "fixed": is_fixed.astype(np.int32),
        "beyond": beyond.astype(np.float32),
        "near": near,
        "outside": outside,
        "maps": rng.uniform(0, 0.2, (L, R, G, N)).astype(np.float32) ** 2,
        "averages": np.full((R, G, N), np.nan, np.float32),
        "bias": np.full((R, S, G, N), np.nan, np.float32),
    }


def evaluations(arrays: Arrays, run: Callable[[Arrays], None], count: int = 3) -> None:
    """Several evaluations whose maps are the same in another order of positions."""
    for step in range(count):
        arrays["step"][0] = step
        run(arrays)
        arrays["maps"][...] = np.roll(arrays["maps"], 3, axis=-1) * np.float32(0.9)


cases = st.builds(
    make_case,
    seed=st.integers(0, 2**32 - 1),
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    subjects=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    L=st.integers(1, 3),
    fixed=st.sets(st.integers(0, 3), max_size=3).map(sorted),
)


# ---- properties


@properties
@given(case=cases)
def test_numpy_equals_the_float64_reference(case: Arrays) -> None:
    """Averages: a dozen roundings of float32. Bias: those of the weakness, times mu."""
    h, w = case["near"].shape
    expected: list[Any] = [None] * len(case["subjects"])

    def both(arrays: Arrays) -> None:
        for row, count in enumerate(arrays["subjects"]):
            maps = arrays["maps"][:, row, :count].reshape(-1, count, h, w)
            before = None if expected[row] is None else expected[row].averages
            places = {
                g: 1.0 - np.float64(arrays["beyond"][row, g].reshape(h, w))
                for g in np.flatnonzero(arrays["fixed"][row, :count])
            }
            factor = float(FACTORS[arrays["step"][0]])
            expected[row] = exclusive_bias(maps, before, away=factor * AWAY, boost=factor * BOOST, places=places)
        exclude(arrays)
        for row, count in enumerate(arrays["subjects"]):
            made = arrays["averages"][row, :count].reshape(count, h, w)
            assert_allclose(made, expected[row].averages, rtol=1e-6)
            assert_allclose(arrays["bias"][row, 0, :count].reshape(count, h, w), expected[row].bias, atol=1e-5)
            assert not arrays["bias"][row, 0, count:].any()

    evaluations(case, both)


@properties
@given(case=cases, data=st.data())
def test_permuting_subjects_permutes_their_bias(case: Arrays, data: st.DataObject) -> None:
    count = case["maps"].shape[2]
    case["subjects"][:] = count
    order = data.draw(st.permutations(range(count)))
    moved = {**case, "maps": case["maps"][:, :, order], "averages": case["averages"] * 1, "bias": case["bias"] * 1}
    # A place is given in rows that have the subject; here all rows have all of them.
    case["beyond"][np.isnan(case["beyond"])] = 0.5
    moved |= {name: case[name][:, order] for name in ("fixed", "beyond")}
    exclude(case)
    exclude(moved)
    assert_array_equal(moved["bias"], case["bias"][:, :, order])
    assert_array_equal(moved["averages"], case["averages"][:, order])


@properties
@given(case=cases)
def test_a_batch_equals_its_rows_one_by_one(case: Arrays) -> None:
    per_row = ("subjects", "fixed", "beyond", "averages", "bias")
    singles = []
    for row in range(len(case["subjects"])):
        single = {**case, "maps": case["maps"][:, row : row + 1] * 1, "step": case["step"] * 1}
        singles.append(single | {name: case[name][row : row + 1] * 1 for name in per_row})
        evaluations(singles[-1], exclude)
    evaluations(case, exclude)
    for name in ("averages", "bias"):
        assert_array_equal(case[name], np.concatenate([single[name] for single in singles]))


@properties
@given(case=cases)
def test_centres_are_apart_and_a_bias_is_largest_at_its_centre(case: Arrays) -> None:
    """Unless the grid is full: four subjects of a line of three cells."""
    case["fixed"][:] = 0
    h, w = case["near"].shape
    exclude(case)
    count = int(case["subjects"][0])
    bias = case["bias"][0, 0, :count].reshape(count, h, w)
    assert np.isfinite(bias).all() and np.abs(bias).max() <= AWAY + BOOST
    centres = exclusive_bias(case["maps"][:, 0, :count].reshape(-1, count, h, w), None, away=1, boost=0).centres
    for g, (i, j) in enumerate(centres):
        assert bias[g].max() == bias[g, i, j]
    if min(h, w) >= 4:
        for g, z in np.ndindex(count, count):
            if g < z:
                assert np.hypot(*(centres[g] - centres[z])) >= 0.25 * min(h, w)


def test_a_row_without_two_subjects_has_no_bias() -> None:
    case = make_case(1, 4, 6, [0, 1, 2, 3], S=2)
    exclude(case)
    assert_array_equal(case["bias"][:2, 0], 0.0)
    assert_array_equal(case["bias"][2, 0, 2:], 0.0)
    assert case["bias"][2, 0, :2].any() and case["bias"][3, 0, 2].any()
    assert np.isnan(case["bias"][:, 1]).all()  # other contexts are left alone


def test_groups_that_are_no_subjects_change_nothing() -> None:
    case = make_case(2, 5, 7, [2], G=4)
    case["maps"][:, :, 2:] *= 100.0
    fewer = {**case, "maps": case["maps"][:, :, :2] * 1}
    fewer |= {name: case[name][:, :2] * 1 for name in ("fixed", "beyond", "averages")}
    fewer |= {"bias": case["bias"][:, :, :2] * 1}
    exclude(case)
    exclude(fewer)
    assert_array_equal(case["bias"][:, :, :2], fewer["bias"])
    assert_array_equal(case["bias"][:, :, 2:], 0.0)


def test_maps_of_zeros_place_the_subjects_in_order() -> None:
    """The first at the first position, the second at the first one that is not near: two cells on."""
    case = make_case(3, 8, 8, [2])
    case["maps"][:] = 0.0
    exclude(case)
    bias = case["bias"][0, 0].reshape(2, 8, 8)
    assert bias[0, 0, 0] == bias[1, 0, 2] == 0.0  # nobody is weaker than another
    assert_allclose(bias[0], -AWAY * case["outside"], rtol=1e-6)
    assert (np.count_nonzero(bias[0] == 0), np.count_nonzero(bias[1] == 0)) == (1, 1)


def test_equal_peaks_go_to_the_lowest_group_and_position() -> None:
    case = make_case(4, 6, 9, [3], L=1)
    case["maps"][:] = 0.0
    grid = case["maps"].reshape(3, 6, 9)
    grid[:, 1:3, 1:3] = grid[:, 4:6, 6:8] = 1.0
    exclude(case)
    bias = case["bias"][0, 0].reshape(3, 6, 9)
    averages = case["averages"][0, 0].reshape(6, 9)
    first = [int(n) for n in np.unravel_index(averages.argmax(), (6, 9))]
    assert [int(n) for n in np.unravel_index(bias[0].argmax(), (6, 9))] == first
    others = [np.unravel_index(bias[g].argmax(), (6, 9)) for g in (1, 2)]
    free = np.where(np.hypot(*(np.indices((6, 9)) - np.reshape(first, (2, 1, 1)))) < 1.5, -1, averages)
    assert [int(n) for n in others[0]] == [int(n) for n in np.unravel_index(free.argmax(), (6, 9))]


def test_a_weak_subject_is_strengthened_and_a_window_is_as_wide_in_both_directions() -> None:
    """By hand, on 8 x 12: the side is 8, a window's deviation 1.2 cells, and 2 cells lie between centres."""
    case = make_case(5, 8, 12, [2], L=1)
    case["maps"][:] = 0.0
    grid = case["maps"].reshape(2, 8, 12)
    grid[0, 3, 2] = 0.8  # smoothed: 0.2
    grid[1, 3, 3] = 0.4  # 0.1, but too near; 0.05 beside it, at (3, 4), is not
    grid[1, 5, 10] = 0.2  # 0.05 too, and further on
    exclude(case)
    first, second = case["bias"][0, 0].reshape(2, 8, 12)
    assert_allclose(case["averages"][0, 0].reshape(8, 12)[2:5, 1:4], 0.05 * np.outer((1, 2, 1), (1, 2, 1)), rtol=1e-6)
    assert_allclose([first[3, 2], first[3, 4], first[5, 2]], [0, *[AWAY * (np.exp(-4 / 2.88) - 1)] * 2], atol=1e-6)
    # Its peak is half of the strongest, whether it may have its centre there or not.
    weakness = BOOST * 0.5
    assert_allclose([second.max(), second[3, 4]], weakness, rtol=1e-6)
    assert_allclose(second[5, 10], weakness + AWAY * (np.exp(-40 / 2.88) - 1), atol=1e-5)


def test_a_given_place_is_kept_and_others_stay_out_of_it() -> None:
    """By hand: the first subject has the left half, where the second one's map is largest."""
    case = make_case(6, 8, 8, [2, 1], L=1, fixed=[0])
    case["maps"][:] = 0.0
    case["beyond"][:, 0].reshape(2, 8, 8)[...] = np.where(np.arange(8) < 4, 0.0, 1.0)
    case["maps"].reshape(2, 2, 8, 8)[0, 1, 2, 1:7] = (8, 4, 2, 1, 1, 1)
    case["maps"].reshape(2, 2, 8, 8)[0, 0, 6, 6] = 4
    exclude(case)
    first, second = case["bias"][0, 0].reshape(2, 8, 8)
    weakness = 1 - case["averages"][0, 0].max() / case["averages"][0, 1].max()
    assert_allclose(first[:, :4], BOOST * weakness, rtol=1e-6)
    assert_allclose(first[:, 4:], BOOST * weakness - AWAY, rtol=1e-6)
    # The largest average of the right half is at its edge; the strongest subject is not strengthened.
    assert [int(n) for n in np.unravel_index(second.argmax(), (8, 8))] == [2, 4] and second.max() == 0.0
    # One subject alone, in its place.
    assert_array_equal(case["bias"][1, 0, 0].reshape(8, 8), first - np.float32(BOOST * weakness))


def test_before_there_are_maps_only_given_places_count() -> None:
    case = make_case(7, 4, 4, [0, 1, 2, 2], S=2, G=3, fixed=[1])
    begin(case, 0.5)
    expected = np.zeros((4, 3, 16), np.float32)
    expected[2:, 1] = -0.5 * case["beyond"][2:, 1]
    assert_array_equal(case["bias"][:, 0], expected)
    assert not case["bias"][:, 1].any() and not case["averages"].any()


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tables(0, 8), "0x8; both sides"),
        (lambda: tables(8, 8, window=0.0), r"window of a subject is 0\.0"),
        (lambda: tables(8, 8, window=float("nan")), "window of a subject is nan"),
        (lambda: tables(8, 8, apart=-0.1), r"subjects are -0\.1 sides apart"),
        (lambda: check_strengths(-1.0, 0.0), "lambda of exclusive attention is -1; pass 0 to 1000"),
        (lambda: check_strengths(0.0, float("nan")), "mu of exclusive attention is nan"),
        (lambda: check_subjects([0, 4], 3), "row 1 has 4 subjects; pass 0 to 3"),
        (lambda: check_subjects([-1], 3), "row 0 has -1 subjects"),
        (lambda: check_subjects([1.5], 3), "pass one whole number per row"),
        (lambda: check_subjects([[1]], 3), "pass one whole number per row"),
    ],
)
def test_impossible_settings_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("bias", (2, 1, 3, 35), r"bias of exclusive attention has shape \[2, 1, 3, 35\]; it must be \[2, 1, 3, 24\]"),
        ("maps", (2, 2, 3, 25), "maps of exclusive attention"),
        ("averages", (2, 24), "averages of exclusive attention"),
        ("outside", (6, 4), r"outside of exclusive attention has shape \[6, 4\]; it must be \[4, 6\]"),
        ("maps", (0, 2, 3, 24), "none empty"),
    ],
)
def test_shapes_that_contradict_each_other_are_named(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {key: array.shape for key, array in make_case(0, 4, 6, [2, 3]).items()}
    assert sizes(shapes) == {"m": 3, "R": 2, "h": 4, "w": 6, "N": 24, "L": 2, "G": 3, "S": 1}
    with pytest.raises(ParameterError, match=message):
        launch({**shapes, name: shape})
    with pytest.raises(ParameterError, match=f"lacks {name}"):
        sizes({key: value for key, value in shapes.items() if key != name})


def test_sizes_that_the_kernel_does_not_have_are_named() -> None:
    def shapes(h: int, w: int, groups: int) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in make_case(0, h, w, [2], G=groups).items()}

    launch(shapes(32, 32, 31))
    with pytest.raises(ParameterError, match=r"maps of 32x33; .*1024 positions or fewer"):
        launch(shapes(32, 33, 2))
    with pytest.raises(ParameterError, match="32 groups; it takes 31"):
        launch(shapes(2, 2, 32))
    with pytest.raises(ParameterError, match="7 elements apart; pass 8 or more"):
        launch(shapes(2, 2, 2), layer_stride=7)


def test_the_largest_bias_is_one_that_energy_attention_takes() -> None:
    assert 2 * MAX_STRENGTH <= MAX_BIAS


# ---- the kernel

CASES: dict[str, dict[str, Any]] = {
    "square": {"seed": 10, "h": 8, "w": 8, "subjects": [0, 3, 2, 1], "S": 2},
    "wide": {"seed": 11, "h": 5, "w": 7, "subjects": [0, 4], "L": 1},
    "high, one of many groups unused": {"seed": 12, "h": 13, "w": 3, "subjects": [2, 5], "L": 3, "G": 6},
    "full": {"seed": 13, "h": 1, "w": 2, "subjects": [3]},
    "given places": {"seed": 15, "h": 8, "w": 6, "subjects": [3, 1, 2, 0], "fixed": [0, 2], "G": 4},
    "only given places": {"seed": 16, "h": 4, "w": 6, "subjects": [2], "fixed": [0, 1]},
    "the largest": {"seed": 14, "h": 32, "w": 32, "subjects": [2]},
}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of every case in a separate process: the interpreter must be selected before Triton is imported."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("exclusion")
    code = "import sys; sys.path[:0] = sys.argv[2:]; from helpers.interpreted_exclusion import main; main(sys.argv[1])"
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(here), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_has_the_bits_of_numpy(interpreted: Path, name: str) -> None:
    """In the interpreter, which fuses nothing."""
    expected = make_case(**CASES[name])
    evaluations(expected, exclude)
    made = np.load(interpreted / f"{name}.npz")
    for key, value in expected.items():
        assert_array_equal(made[key], value, err_msg=key)


def test_the_compiled_kernel_takes_the_tensors_and_sizes_of_the_launch() -> None:
    kernels = KernelSet.load()
    driver = FakeLauncher(kernels)
    made = launch({name: array.shape for name, array in make_case(**CASES["square"]).items()}, layer_stride=800)
    assert made.tensors == tuple(TENSORS) and made.blocks == 4
    pointers = {name: 0x1000 + 4096 * index for index, name in enumerate(made.tensors)}
    KernelLibrary(driver, kernels).bind_kernel("ebca_exclude", made.blocks, made.values, pointers)(7)
    (launched,) = driver.launched
    assert launched["grid"] == (4, 1, 1) and launched["stream"] == 7
    assert {name: launched[f"{name}_ptr"] for name in made.tensors} == pointers
    assert {name: launched[name] for name in made.values} == dict(made.values)
    assert made.values["layer_stride"] == 800
    assert {b.constants["BLOCK"] for b in kernels.binaries if b.kernel == "ebca_exclude"} == {BLOCK}
