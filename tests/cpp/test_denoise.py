"""A single evaluation of the UNet by the C++ library, against `ebca.Denoiser`."""

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import ebca
from ebca.errors import NumericalError, ParameterError
from ebca.runtime import native
from ebca.runtime.native import structures, view

TOKENS, WIDTH, SIDE = 24, 128, 16
Both = tuple[native.Session, ebca.Denoiser]


@pytest.fixture(scope="module")
def both(shapes: native.Engine, python_shapes: ebca.Engine) -> Iterator[Both]:
    with shapes.session() as session:
        yield session, ebca.Denoiser(python_shapes)


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def inputs(rows: int = 2, contexts: int = 1, tokens: int = TOKENS) -> tuple[np.ndarray, np.ndarray]:
    return values(rows, 4, SIDE, SIDE), values(rows, contexts, tokens, WIDTH, seed=1, scale=0.5)


def compare(both: Both, rows: int = 2, contexts: int = 1, timestep: Any = 741.0, **given: Any) -> native.Result:
    session, denoiser = both
    sample, context = inputs(rows, contexts, given.pop("tokens", TOKENS))
    made = session.denoise(sample, timestep, context, **given)
    expected = denoiser(sample, np.asarray(timestep, np.float32), context, **given)
    assert np.array_equal(made.noise, expected.noise) and np.array_equal(made.contexts, expected.contexts)
    if given.get("energies"):
        assert made.attention_energies is not None and made.norm_energies is not None
        assert np.array_equal(np.stack([made.attention_energies[0], made.norm_energies[0]], 1), expected.energies)
    else:
        assert made.attention_energies is None
    assert made.task == "" and made.pixels is None and len(made.unet_seconds) == 1
    return made


UPDATE = ebca.EnergyControl(gamma_attn=0.03, gamma_norm=0.2)
EDITING = ebca.EnergyControl(gamma_attn=0.03, gamma_norm=0.2, weights=[[1.0, 0.7, -0.4]])


@pytest.mark.parametrize("energies", [False, True], ids=["plain", "energies"])
def test_an_evaluation_is_python_s(both: Both, energies: bool) -> None:
    plain = compare(both, energies=energies)
    updated = compare(both, control=UPDATE, energies=energies)
    assert not np.array_equal(plain.noise, updated.noise) and not np.array_equal(plain.contexts, updated.contexts)
    compare(both, contexts=3, control=EDITING, energies=energies)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_any_number_of_rows_is_evaluated(both: Both, rows: int) -> None:
    compare(both, rows, control=UPDATE)
    compare(both, rows, timestep=list(range(5, 5 + rows)), contexts=2, control=replace(UPDATE, rows_per_image=3))


def test_any_number_of_tokens_is_taken(both: Both) -> None:
    compare(both, tokens=5, control=UPDATE)


def test_controls_broadcast_as_in_numpy(both: Both) -> None:
    per_token = values(TOKENS, seed=3, scale=0.01)
    for gamma_attn in (per_token, per_token[None, None], values(2, 1, TOKENS, scale=0.01), values(2, 3, 1, scale=0.01)):
        compare(both, contexts=3, control=ebca.EnergyControl(gamma_attn=gamma_attn, gamma_norm=[[0.1], [0.2]]))
    compare(both, contexts=3, control=ebca.EnergyControl(gamma_norm=[0.1, 0.0, 0.3], weights=[1.0, 0.5, -0.2]))


def test_options_of_the_update_are_read(both: Both) -> None:
    mask = (np.arange(SIDE) < 5).astype(np.float32)[None, None, None].repeat(SIDE, 2)
    made = [compare(both, control=UPDATE), compare(both, control=replace(UPDATE, mask=mask))]
    made.append(compare(both, control=replace(UPDATE, mask=np.concatenate([mask, 1 - mask]))))
    made.append(compare(both, control=replace(UPDATE, norm_factor=0.5)))
    for i, one in enumerate(made):
        assert not any(np.array_equal(one.noise, other.noise) for other in made[:i])
    tied = [compare(both, contexts=3, control=replace(EDITING, tie_unconditional=tie)) for tie in (True, False)]
    assert not np.array_equal(tied[0].noise, tied[1].noise)


def test_a_host_s_evaluation_is_the_one_of_generate(shapes: native.Engine) -> None:
    seen: list[np.ndarray] = []

    def look(info: structures.StepInfo) -> bool:
        contexts = view(info.contexts)
        assert contexts is not None
        seen.append(contexts.copy())
        return False

    embeds = shapes.encode_prompt(["", "a red circle"])
    start = values(1, 4, SIDE, SIDE)
    with shapes.session() as session:
        with pytest.raises(ebca.CancelledError):
            session.generate(
                prompt_embeds=embeds[1:], negative_prompt_embeds=embeds[:1], latents=start, steps=4, scheduler="ddim",
                gamma_attn=0.01, gamma_norm=0.02, on_step=look,
            )  # fmt: skip
        control = ebca.EnergyControl(gamma_attn=0.01, gamma_norm=0.02)
        timestep = session.generate("", steps=4, seed=1, scheduler="ddim", output="latents").timesteps[0]
        made = session.denoise(np.concatenate([start, start]), timestep, embeds[:, None], control)
    assert np.array_equal(made.contexts, seen[0])


def test_wrong_inputs_are_refused(both: Both) -> None:
    session, (sample, contexts) = both[0], inputs()
    control = ebca.EnergyControl
    cases: list[tuple[str, tuple[Any, ...]]] = [
        (r"sample has shape \[2, 3, 16, 16\]; give \[rows, 4, 16, 16\]", (sample[:, :3], 1, contexts)),
        (r"sample has shape \[2, 4, 16, 12\]", (sample[..., :12], 1, contexts)),
        (r"contexts has shape \[1, 1, 24, 128\]; give \[2, contexts, tokens, 128\]", (sample, 1, contexts[:1])),
        (r"contexts has shape", (sample, 1, contexts[..., :32])),
        ("timesteps has 3 values for 2 rows; give one, or one each", (sample, [1, 2, 3], contexts)),
        (r"timesteps\[0\] is nan", (sample, np.nan, contexts)),
        (r"gamma_attn has shape \[7\]; give \[2, 1, 24\]", (sample, 1, contexts, control(np.zeros(7)))),
        ("gamma_norm has values that are not finite", (sample, 1, contexts, control(0, np.inf))),
        ("weights of row 0", (sample, 1, contexts, control(weights=0.0))),
        (r"mask has shape \[1, 1, 8, 8\]", (sample, 1, contexts, control(mask=np.ones((1, 1, 8, 8))))),
        ("mask has values", (sample, 1, contexts, control(mask=np.full((1, 1, 16, 16), np.nan)))),
        ("norm_factor is nan", (sample, 1, contexts, control(norm_factor=float("nan")))),
        ("rows_per_image is 0", (sample, 1, contexts, control(rows_per_image=0))),
    ]
    for text, arguments in cases:
        with pytest.raises(ParameterError, match=text):
            session.denoise(*arguments)
    with pytest.raises(NumericalError, match="the sample given to it"):
        session.denoise(sample * np.float32(np.inf), 1, contexts)
    compare(both)


def test_null_is_refused(both: Both) -> None:
    lib, handle, out = both[0].library.lib, both[0].handle, ctypes.c_void_p()
    params = both[0].library.init("denoise_params")
    assert (params.tie_unconditional, params.rows_per_image, params.norm_factor) == (1, 2, 1.0)
    for arguments in ((None, ctypes.byref(params)), (handle, None), (handle, ctypes.byref(params))):
        assert lib.ebca_session_denoise(*arguments, ctypes.byref(out)) == structures.Status.PARAMETER
        assert not out
    assert lib.ebca_session_last_problem(handle) == b"sample.data is NULL"
