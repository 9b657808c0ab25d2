"""Wrong calls of libebca, each group in a process of its own, so that a crash is a failed test.

Every function takes a `Place`, makes calls, and asserts on their statuses and texts.
"""

import ctypes
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from helpers.manifests import stamped

from ebca.runtime import native
from ebca.runtime.native import structures

OK, PARAMETER, ENGINE, BACKEND, NUMERICAL, CANCELLED, UNSUPPORTED, OUT_OF_MEMORY = range(8)
PROMPT = b"a red circle"
# More of anything would be a bug of the library: EBCA_ERROR_INTERNAL.
REFUSALS = (PARAMETER, ENGINE, BACKEND, NUMERICAL, UNSUPPORTED, OUT_OF_MEMORY)


@dataclass(frozen=True)
class Place:
    library: Path
    onnxruntime: Path
    engine: Path
    scratch: Path  # empty
    cache: Path  # where the engine is prepared already

    def load(self) -> native.Library:
        return native.Library(self.library, self.onnxruntime)

    def open(self, path: Path | str | None = None, **given: Any) -> native.Engine:
        return self.load().open(self.engine if path is None else path, **{"cache": self.cache, **given})


def generate_params(library: native.Library, **given: Any) -> Any:
    """One step to latents from a text, with these fields."""
    params = library.init("generate_params")
    params.prompt = structures.Prompt((c_char_p * 1)(PROMPT), 1)
    params.steps, params.latents_only, params.scheduler = 1, 1, b"ddim"
    for name, value in given.items():
        setattr(params, name, value)
    return params


def invert_params(library: native.Library, **given: Any) -> Any:
    params = library.init("invert_params")
    params.prompt = structures.Prompt((c_char_p * 1)(PROMPT), 1)
    params.latents, params.steps = tensor((1, 4, 16, 16)), 2
    for name, value in given.items():
        setattr(params, name, value)
    return params


def tensor(shape: tuple[int, ...], value: float = 0.5) -> structures.Tensor:
    count = int(np.prod(shape))
    made = structures.Tensor((c_float * count)(*[value] * count), (c_int64 * 4)(*shape), len(shape), 0)
    return made


def generate(session: native.Session, params: Any) -> int:
    return _call(session, session.library.lib.ebca_session_generate, params)


def invert(session: native.Session, params: Any) -> int:
    return _call(session, session.library.lib.ebca_session_invert, params)


def _call(session: native.Session, function: Any, params: Any) -> int:
    out = POINTER(structures.Result)()
    status = int(function(session.handle, byref(params), byref(out)))
    assert bool(out) == (status == OK), status
    assert (status == OK) == (session.last_error() == ""), (status, session.last_error())
    session.library.lib.ebca_result_free(out)
    return status


def refused(session: native.Session, status: int, said: str | None = None) -> str:
    """The text of a refusal, which names `said`."""
    text = session.last_error()
    assert status in REFUSALS, (status, text)
    assert text == session.library.last_error()
    assert len(text) > 10 and (said is None or said in text), (said, text)
    return text


def works(session: native.Session) -> None:
    """The session still makes images."""
    assert generate(session, generate_params(session.library)) == OK, session.last_error()


# Null.


def null_everywhere(place: Place) -> None:
    library = place.load()
    lib, out = library.lib, c_void_p(1)
    for name in ("engine", "session", "result"):
        getattr(lib, f"ebca_{name}_free")(None)
    for name in structures.PARAMS:
        getattr(lib, f"ebca_{name}_init")(None, 0)
        getattr(lib, f"ebca_{name}_init")(None, 2**63)
    assert b"NULL" in lib.ebca_engine_last_error(None) and b"NULL" in lib.ebca_session_last_error(None)
    engine = place.open()
    session = engine.session()
    make, turn = generate_params(library), invert_params(library)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (lib.ebca_engine_open, (None, None)),
        (lib.ebca_engine_open, (None, byref(out))),
        (lib.ebca_engine_open, (byref(library.init("engine_params")), None)),
        (lib.ebca_engine_get_info, (None, None)),
        (lib.ebca_engine_get_info, (None, byref(structures.EngineInfo()))),
        (lib.ebca_engine_get_info, (engine.handle, None)),
        (lib.ebca_session_create, (None, None, None)),
        (lib.ebca_session_create, (None, byref(library.init("session_params")), byref(out))),
        (lib.ebca_session_create, (engine.handle, None, None)),
        (lib.ebca_session_cancel, (None,)),
    ]
    for function, params in ((lib.ebca_session_generate, make), (lib.ebca_session_invert, turn)):
        for arguments in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)):
            given = (session.handle, byref(params), byref(out))
            calls.append((function, tuple(a if use else None for a, use in zip(given, arguments, strict=True))))
    for function, given in calls:
        out.value = 1
        assert function(*given) == PARAMETER, (function, given)
        assert "NULL" in library.last_error(), library.last_error()
        assert out.value in (None, 1)
    for name in ("seeds", "token_weights", "edits", "images", "masks"):
        params = generate_params(library)
        setattr(params, f"{name.removesuffix('s')}_count", 2)
        refused(session, generate(session, params), f"{name} is NULL, but 2 are announced")
    params = generate_params(library, prompt=structures.Prompt(None, 3))
    refused(session, generate(session, params), "prompt.texts is NULL, but 3 are announced")
    params = generate_params(library, prompt=structures.Prompt((c_char_p * 1)(None), 1))
    refused(session, generate(session, params), "prompt.texts[0] is NULL")
    params = generate_params(library, gamma_attn=structures.Schedule(5, 0, 0, None, 4))
    refused(session, generate(session, params), "gamma_attn.values is NULL, but 4 are announced")
    params = generate_params(library, gamma_attn=structures.Schedule(5, 0, 0, None, 0))
    refused(session, generate(session, params), "gamma_attn has 0 values")
    params = generate_params(library, images=(structures.Image * 1)(structures.Image(None, 8, 8, 3)), image_count=1)
    params.strength = 1.0
    refused(session, generate(session, params), "no data")
    for params in (turn, invert_params(library, latents=structures.Tensor())):
        params.image_count = 1
        refused(session, invert(session, params), "images is NULL")
    refused(
        session, invert(session, invert_params(library, latents=structures.Tensor())), "either images or the latents"
    )
    refused(session, generate(session, library.init("generate_params")), "give either texts or embeds")
    works(session)


# Sizes of structs.


def sizes_of_structs(place: Place) -> None:
    engine = place.open()
    session, library = engine.session(), engine.library
    lib = library.lib

    def sizes(params: type[ctypes.Structure]) -> list[int]:
        size = ctypes.sizeof(params)
        return [0, 1, 7, 8, size - 8, size - 1, size + 1, size + 8, 2**31, 2**32 + size, 2**63, 2**64 - 1]

    for size in sizes(structures.EngineParams):
        params = library.init("engine_params")
        params.struct_size = size
        assert lib.ebca_engine_open(byref(params), byref(c_void_p())) == PARAMETER
        assert f"ebca_engine_params has struct_size {size}," in library.last_error()
    for size in sizes(structures.SessionParams):
        params = library.init("session_params")
        params.struct_size = size
        assert lib.ebca_session_create(engine.handle, byref(params), byref(c_void_p())) == PARAMETER
        assert f"ebca_session_params has struct_size {size}," in library.last_error()
    for size in sizes(structures.EngineInfo):
        info = structures.EngineInfo(struct_size=size)
        assert lib.ebca_engine_get_info(engine.handle, byref(info)) == PARAMETER
        assert f"ebca_engine_info has struct_size {size}," in library.last_error()
        assert info.model is None
    for size in sizes(structures.GenerateParams):
        params = generate_params(library, struct_size=size)
        refused(session, generate(session, params), f"ebca_generate_params has struct_size {size},")
    for size in sizes(structures.InvertParams):
        refused(session, invert(session, invert_params(library, struct_size=size)), f"has struct_size {size},")
    for size in sizes(structures.Edit):
        edits = (structures.Edit * 2)(library.init("edit"), library.init("edit"))
        edits[0].struct_size = size
        params = generate_params(library, edits=edits, edit_count=2)
        refused(session, generate(session, params), f"ebca_edit has struct_size {size},")
    for size in sizes(structures.RePaintParams):
        repaint = library.init("repaint_params")
        repaint.struct_size = size
        params = generate_params(library, repaint=ctypes.pointer(repaint))
        refused(session, generate(session, params), f"ebca_repaint_params has struct_size {size},")
    for size in sizes(structures.RegularizeParams):
        regularize = library.init("regularize_params")
        regularize.struct_size = size
        params = invert_params(library, regularize=ctypes.pointer(regularize))
        refused(session, invert(session, params), f"ebca_regularize_params has struct_size {size},")
    # Memory that was not initialised, except for its size.
    rng = random.Random(0)
    for _ in range(20):
        params = structures.SessionParams.from_buffer_copy(rng.randbytes(ctypes.sizeof(structures.SessionParams)))
        params.struct_size = ctypes.sizeof(structures.SessionParams)
        assert lib.ebca_session_create(engine.handle, byref(params), byref(c_void_p())) in (OK, PARAMETER)
    works(session)


# Numbers.

DOUBLES = [float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 1e-320, 1e39, 1e300, -1e300]
INTEGERS = [-(2**31), -1, 0, 3, 77, 2**31 - 1]


def fields(params: type[ctypes.Structure], way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field of a struct and of the structs in it, except pointers."""
    for name, kind in params._fields_:
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
            yield from fields(kind, (*way, name))
        elif kind in (c_double, c_int32, c_int64, c_uint32, c_size_t):
            yield (*way, name), kind


def put(params: Any, way: tuple[str, ...], value: Any) -> None:
    for name in way[:-1]:
        params = getattr(params, name)
    setattr(params, way[-1], value)


def strange(kind: Any, way: tuple[str, ...]) -> list[Any]:
    if way[-1] == "struct_size":
        return []
    if kind is c_double:
        return list(DOUBLES)
    if kind is c_size_t:
        # Counts of pointers that are NULL.
        return [] if way[-1] == "count" and way[0] == "prompt" else [2, 2**20 + 1, 2**64 - 1]
    return INTEGERS if kind is not c_uint32 else [0, 2**32 - 1]


def numbers_in_every_field(place: Place) -> None:
    """Any value of a field gives a status, with a text if it is not 0, and the session stays usable."""
    session = place.open().session()
    library, pixels = session.library, (ctypes.c_uint8 * (64 * 64 * 3))(*[255] * (64 * 64 * 3))
    image = structures.Image(pixels, 64, 64, 3)
    tried = 0

    def check(status: int, way: tuple[str, ...], value: Any) -> None:
        nonlocal tried
        tried += 1
        if status != OK:
            refused(session, status)
            assert status in (PARAMETER, NUMERICAL, UNSUPPORTED), (way, value, status, session.last_error())

    for way, kind in fields(structures.GenerateParams):
        for value in strange(kind, way):
            params = generate_params(library)
            put(params, way, value)
            check(generate(session, params), way, value)
    for way, kind in fields(structures.Edit):
        for value in strange(kind, way):
            edit = library.init("edit")
            edit.prompt = structures.Prompt((c_char_p * 1)(b"a blue square"), 1)
            put(edit, way, value)
            params = generate_params(library, edits=(structures.Edit * 1)(edit), edit_count=1)
            check(generate(session, params), way, value)
    for way, kind in fields(structures.RePaintParams):
        for value in strange(kind, way):
            repaint = library.init("repaint_params")
            put(repaint, way, value)
            params = generate_params(
                library, images=(structures.Image * 1)(image), image_count=1, scheduler=None, steps=2
            )
            params.masks, params.mask_count, params.repaint = params.images, 1, ctypes.pointer(repaint)
            check(generate(session, params), way, value)
    for way, kind in fields(structures.TokenWeight):
        for value in strange(kind, way):
            weight = structures.TokenWeight(None, 1, 2.0)
            put(weight, way, value)
            params = generate_params(library, token_weight_count=1, token_weights=(structures.TokenWeight * 1)(weight))
            params.gamma_attn.value = 0.01
            check(generate(session, params), way, value)
    for way, _ in fields(structures.Image):
        for value in [*INTEGERS[:3], *([2, 5] if way == ("channels",) else []), 2**16 + 1, 2**31 - 1]:
            wrong = structures.Image(pixels, 64, 64, 3)
            put(wrong, way, value)
            params = generate_params(library, images=(structures.Image * 1)(wrong), image_count=1, strength=1.0)
            status = generate(session, params)
            assert status == PARAMETER and "channels" in session.last_error(), (way, value)
    for way, kind in fields(structures.InvertParams):
        for value in strange(kind, way):
            params = invert_params(library)
            put(params, way, value)
            check(invert(session, params), way, value)
    for way, kind in fields(structures.RegularizeParams):
        for value in [*DOUBLES] if kind is c_double else [-(2**31), -1, 0, 3, 1001, 2**31 - 1]:
            regularize = library.init("regularize_params")
            put(regularize, way, value)
            params = invert_params(library, regularize=ctypes.pointer(regularize))
            check(invert(session, params), way, value)
    assert tried > 300, tried
    works(session)


def announced_sizes(place: Place) -> None:
    """Sizes and counts that the session does not take are refused before anything is read or allocated."""
    session = place.open().session()
    library, one = session.library, (c_float * 1)()

    def tensor_of(*shape: int) -> structures.Tensor:
        return structures.Tensor(one, (c_int64 * 4)(*shape), len(shape), 0)

    for shape in ((1, 4, 4096, 4096), (1, 4, 16, 2**34), (4096, 4, 16, 16)):
        refused(session, generate(session, generate_params(library, latents=tensor_of(*shape))), "this session needs")
        refused(session, invert(session, invert_params(library, latents=tensor_of(*shape))), "this session needs")
    for shape, said in (
        ((1, 2**30, 128), "prompt.embeds has 1073741824 tokens; give 1 to 10000"),
        ((2**20, 4, 128), "give [1, tokens, 128]"),
        ((1, 4, 2**30), "give [1, tokens, 128]"),
    ):
        params = generate_params(library, prompt=structures.Prompt(None, 0, tensor_of(*shape)))
        refused(session, generate(session, params), said)
    # One of each; more are announced.
    texts, pixels = (c_char_p * 1)(PROMPT), (ctypes.c_uint8 * 4)()
    image = (structures.Image * 1)(structures.Image(pixels, 1, 1, 3))
    for given, said in (
        ({"prompt": structures.Prompt(texts, 4000)}, "4000 texts for a batch of 1"),
        ({"prompt": structures.Prompt(texts, 2**40)}, "prompt.texts has 1099511627776 entries"),
        ({"seeds": (c_int64 * 1)(), "seed_count": 4000}, "seeds has 4000 values for a batch of 1"),
        ({"images": image, "image_count": 4000}, "4000 images were given for a batch of 1"),
        ({"images": image, "image_count": 1, "masks": image, "mask_count": 4000}, "4000 masks were given"),
        ({"edits": (structures.Edit * 1)(library.init("edit")), "edit_count": 5000}, "edits has 5000 entries"),
    ):
        refused(session, generate(session, generate_params(library, **given)), said)
    for height, width, said in ((2**16, 2**16, "at most 268435456 pixels"), (-1, 4, "-1 x 4 pixels"), (0, 4, "0 x 4")):
        wrong = (structures.Image * 1)(structures.Image(pixels, height, width, 3))
        params = generate_params(library, images=wrong, image_count=1, strength=1.0)
        refused(session, generate(session, params), said)
    long = structures.Prompt((c_char_p * 1)(b"a " * (1 << 22)), 1)
    refused(session, generate(session, generate_params(library, prompt=long)), "prompt.texts[0] is longer than 4194304")
    works(session)


def tensors_of_wrong_shapes(place: Place) -> None:
    session = place.open().session()
    library = session.library
    right, data = (1, 4, 16, 16), (c_float * 1024)()

    def made(shape: tuple[int, ...], rank: int | None = None, memory: int = 0) -> structures.Tensor:
        return structures.Tensor(data, (c_int64 * 4)(*shape), len(shape) if rank is None else rank, memory)

    for rank in (-(2**31), -1, 0, 5, 2**31 - 1):
        params = generate_params(library, latents=made(right, rank))
        refused(session, generate(session, params), f"latents have rank {rank}; give 1 to 4 dimensions")
    for shape in ((1, 4, 16, 0), (1, 4, -16, 16), (2**62, 4, 16, 16), (2**31, 2**31, 2, 2), (-1, -4, -16, -16)):
        params = generate_params(library, latents=made(shape))
        refused(session, generate(session, params), f"shape [{', '.join(map(str, shape))}]")
    for shape in ((4, 16, 16), (1, 16, 16, 4), (1, 4, 16, 15), (1, 1, 1, 1), (1024,), (1, 2, 16, 16)):
        params = generate_params(library, latents=made(shape))
        refused(session, generate(session, params), "this session needs [1, 4, 16, 16]")
        refused(session, invert(session, invert_params(library, latents=made(shape))), "this session needs")
    for memory in (-1, 2, 77, 2**31 - 1):
        params = generate_params(library, latents=made(right, memory=memory))
        refused(session, generate(session, params), f"unknown memory {memory}")
    for shape in ((1, 1, 128, 1), (1, 8), (128,), (1, 2, 127), (2, 2, 128)):
        params = generate_params(library, prompt=structures.Prompt(None, 0, made(shape)))
        refused(session, generate(session, params), "give [1, tokens, 128]")
    both = structures.Prompt((c_char_p * 1)(PROMPT), 1, made((1, 2, 128)))
    refused(session, generate(session, generate_params(library, prompt=both)), "either")
    for value in (float("nan"), float("inf")):
        for shape in (right, (1, 2, 128)):
            wrong = tensor(shape, value)
            params = generate_params(library)
            if len(shape) == 4:
                params.latents = wrong
            else:
                params.prompt = structures.Prompt(None, 0, wrong)
            refused(session, generate(session, params), "not finite")
    works(session)


# Texts.

NOT_UTF8 = [
    b"\xff",
    b"a \x80 b",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"a \xe2\x82",
    b"\xf8\x88\x80\x80\x80",
]


def texts_that_are_not_utf8(place: Place) -> None:
    session = place.open().session()
    library = session.library
    for text in NOT_UTF8:
        wrong = structures.Prompt((c_char_p * 1)(text), 1)
        said = f"prompt.texts[0] is not UTF-8 at byte {2 if text.startswith(b'a') else 0}; give UTF-8"
        assert refused(session, generate(session, generate_params(library, prompt=wrong))) == said
        assert (
            refused(session, generate(session, generate_params(library, negative_prompt=wrong))) == f"negative_{said}"
        )
        assert refused(session, invert(session, invert_params(library, prompt=wrong))) == said
        edit = library.init("edit")
        edit.prompt = wrong
        params = generate_params(library, edits=(structures.Edit * 1)(edit), edit_count=1)
        assert refused(session, generate(session, params)) == f"edits[0].{said}"
        weights = (structures.TokenWeight * 1)(structures.TokenWeight(text, 0, 2.0))
        params = generate_params(library, token_weights=weights, token_weight_count=1)
        refused(session, generate(session, params), "token_weights[0].word is not UTF-8 at byte")
        params = generate_params(library, subjects=(c_char_p * 2)(PROMPT, text), subject_count=2)
        refused(session, generate(session, params), "subjects[1] is not UTF-8 at byte")
        regions = (structures.Region * 1)(structures.Region(text, structures.Image()))
        params = generate_params(library, regions=regions, region_count=1)
        refused(session, generate(session, params), "regions[0].subject is not UTF-8 at byte")
        # Names are not decoded, but the text of the error must be UTF-8.
        params = generate_params(library, scheduler=text)
        refused(session, generate(session, params), "is not in this engine")
    works(session)


def huge_texts(place: Place) -> None:
    """A megabyte takes seconds at most, and so do texts that are hard to normalise."""
    session = place.open().session()
    library, size = session.library, 1 << 16
    marks = ["\u0301", "\u0323", "\u0315"]  # of three combining classes: sorted in place
    texts = {
        "words": "a " * (1 << 19),
        "one word": "a" * size,
        "spaces": " " * size,
        "marks": "e" + "".join(marks[i % 3] for i in range(size // 2)),
        "marks in reverse": "e" + marks[0] * (size // 4) + marks[1] * (size // 4),
        "jamo": "\u1100\u1161\u11a8" * (size // 9),
        "special tokens": "<|endoftext|>" * (size // 13),
        "quotes": "'" * size,
        "capitals": "\u0130" * (size // 2),
        "controls": "\x01" * size,
    }
    for name, text in texts.items():
        began = time.monotonic()
        prompt = structures.Prompt((c_char_p * 1)(text.encode()), 1)
        status = generate(session, generate_params(library, prompt=prompt))
        assert status == OK or (status == PARAMETER and "chunks" in session.last_error()), (name, session.last_error())
        assert generate(session, generate_params(library, prompt=prompt, long_prompts=0)) == OK, session.last_error()
        seconds = time.monotonic() - began
        # Quadratic time would take minutes.
        assert seconds < 30, f"{name}: {seconds:.1f} s"
    word = (structures.TokenWeight * 1)(structures.TokenWeight(b"a" * size, 0, 2.0))
    params = generate_params(library, token_weights=word, token_weight_count=1)
    refused(session, generate(session, params), "is not in the prompt")
    refused(session, generate(session, generate_params(library, scheduler=b"x" * size)), "available: ddim")
    works(session)


# Paths.


def strange_paths(place: Place) -> None:
    library = place.load()
    names = [b"with space", b'it\'s "quoted"', b"back\\slash", b"$HOME;`ls`", "ünï-日本-🙂".encode(), b"new\nline"]
    for index, name in enumerate([*names, b"%s%n", b"-x", b"a" * 200, b"not \xff utf8"]):
        folder = place.scratch / os.fsdecode(name)
        folder.mkdir()
        engine_dir = folder / "engine"
        engine_dir.symlink_to(place.engine)
        params = library.init("engine_params")
        params.path, params.onnxruntime_library = os.fsencode(engine_dir), os.fsencode(place.onnxruntime)
        # Preparing takes a second, so only one of them has a cache beside it.
        params.cache_dir = os.fsencode(folder / "cache" if index == 4 else place.cache)
        handle = c_void_p()
        assert library.lib.ebca_engine_open(byref(params), byref(handle)) == OK, (name, library.last_error())
        if index in (4, 9):
            session = native.Engine(library, handle, []).session()
            works(session)
            session.close()
        library.lib.ebca_engine_free(handle)
        params.path += b"/nowhere"
        assert library.lib.ebca_engine_open(byref(params), byref(handle)) == ENGINE
        shown = "/engine/nowhere" if b"\xff" in name else f"{engine_dir}/nowhere"
        assert shown in library.last_error()
    for path in (b"", b"/dev/null", b"/proc/self/mem", b"x" * 5000, b"/" * 5000 + b"tmp", b".", b"..", b"/"):
        params = library.init("engine_params")
        params.path = path
        assert library.lib.ebca_engine_open(byref(params), byref(c_void_p())) == (ENGINE if path else PARAMETER)
        assert library.last_error()
    works(place.open(f"{place.engine}/../{place.engine.name}//./").session())


def linked(place: Place, name: str) -> Path:
    """The engine as links to its files: each can be replaced, and what is prepared stays valid."""
    target = place.scratch / name
    for path in place.engine.rglob("*"):
        if path.is_file():
            link = target / path.relative_to(place.engine)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return target


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def links_out_of_the_directory(place: Place) -> None:
    """A link may lead anywhere, as those of download caches do: contents decide."""
    folder = linked(place, "links")
    works(place.open(folder).session())
    for name, target in {"unet/segment_00.ort.onnx": "/etc/passwd", "tokenizer.json": "/dev/zero"}.items():
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        text = fails_to_open(place, folder)
        assert name in text and ("truncated or changed" in text or "is a device" in text) and "root:" not in text
        replace(folder / name, (place.engine / name).read_bytes())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("tokenizer.json")
    assert "is a link to a file that is not there" in fails_to_open(place, folder)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert "tokenizer.json' is a pipe instead of a file" in fails_to_open(place, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    assert "tokenizer.json' is a directory instead of a file" in fails_to_open(place, folder)
    manifest = folder / "manifest.json"
    for target, said in (
        ("/dev/zero", "is a device"),
        ("/nonexistent", "is a link to a file"),
        (".", "is a directory"),
    ):
        manifest.unlink()
        manifest.symlink_to(target)
        assert f"manifest.json' {said}" in fails_to_open(place, folder)
    manifest.unlink()
    os.mkfifo(manifest)
    assert "manifest.json' is a pipe" in fails_to_open(place, folder)
    manifest.unlink()
    with manifest.open("wb") as file:
        file.truncate(1 << 40)
    assert "more than any that ebca writes" in fails_to_open(place, folder)


def fails_to_open(place: Place, folder: Path, statuses: tuple[int, ...] = (ENGINE,), cache: Path | None = None) -> str:
    library = place.load()
    params = library.init("engine_params")
    params.path, params.cache_dir = os.fsencode(folder), os.fsencode(cache or place.cache)
    params.onnxruntime_library = os.fsencode(place.onnxruntime)
    handle = c_void_p()
    status = library.lib.ebca_engine_open(byref(params), byref(handle))
    assert status in statuses and handle.value is None, (status, library.last_error())
    return str(library.lib.ebca_last_error().decode(errors="replace"))


# Files.


def truncated_and_flipped_files(place: Place) -> None:
    """A file of every kind, cut off or with one bit changed: refused by name, before or when it is first needed."""
    for name in ("unet/segment_00.ort.onnx", "unet/segment_00.onnx.data", "tokenizer.json", "schedulers/ddim.f64",
                 "schedulers/alphas_cumprod.f64", "vae_decoder.ort.onnx", "text_encoder.onnx.data",
                 "ops/energy_attention_h2_d48.update.onnx"):  # fmt: skip
        folder = linked(place, name.replace("/", "-"))
        whole = (place.engine / name).read_bytes()
        for content in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
            replace(folder / name, content)
            text = fails_to_open(place, folder)
            assert name in text and "truncated or changed" in text and "export" in text, text
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        replace(folder / name, bytes(flipped))
        try:
            session = place.open(folder).session()
        except structures.ERRORS[ENGINE] as error:
            text = str(error)
        else:
            text = refused(session, generate(session, generate_params(session.library)))
        assert f"{name}' is corrupted" in text and "export the engine again" in text, text


def forged(folder: Path, changes: dict[str, bytes]) -> None:
    """Replace files, and have the manifest say that they are right."""
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    for name, content in changes.items():
        replace(folder / name, content)
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    replace(folder / "manifest.json", stamped(manifest))


def files_that_a_manifest_vouches_for(place: Place) -> None:
    """Wrong contents with right sizes and digests."""
    cache = place.scratch / "cache"
    for content in (b"not a graph", b""):
        folder = linked(place, f"graph of {len(content)}")
        forged(folder, {"unet/time_embedding.ort.onnx": content})
        assert "time_embedding.ort.onnx" in fails_to_open(place, folder, (BACKEND,), cache)
    folder = linked(place, "weights")
    forged(folder, {"unet/time_embedding.onnx.data": b"\0" * 100})
    assert "time_embedding" in fails_to_open(place, folder, (BACKEND,), cache)
    tables = {name: np.frombuffer((place.engine / f"schedulers/{name}.f64").read_bytes()) for name in ("ddim", "euler")}
    folder = linked(place, "read when needed")
    changes = {
        "tokenizer.json": b'{"model": [1, 2, {}]}',
        "schedulers/ddim.f64": (tables["ddim"] * np.nan).tobytes(),
        "schedulers/euler.f64": (tables["euler"] * 1e300).tobytes(),
    }
    forged(folder, changes)
    session = place.open(folder, cache=cache).session()
    embeds = structures.Prompt(None, 0, tensor((1, 2, 128)))
    for scheduler, said in (
        (b"pndm", "tokenizer"),
        (b"ddim", "ddim.f64' holds values that are not finite"),
        (b"euler", "not finite"),
    ):
        params = generate_params(session.library, scheduler=scheduler)
        if scheduler != b"pndm":
            params.prompt = params.negative_prompt = embeds
        refused(session, generate(session, params), said)
    folder = linked(place, "short table")
    forged(folder, {"schedulers/unipc.f64": b"\0" * 7})
    assert "bytes, and 'schedulers/unipc.f64' has 7" in fails_to_open(place, folder)
    manifest = json.loads((place.engine / "manifest.json").read_text())
    folder = linked(place, "manifest")
    batch, vae = manifest["unet"]["tensors"]["sample"]["shape"], manifest["vae"]
    # 2 at one size, as a batch with guidance; at another size the host would write beyond its buffer.
    batch[0] = "width_3"
    replace(folder / "manifest.json", stamped(manifest))
    assert "tensor 'sample' of the UNet is float32 [width_3, 4, height, width]" in fails_to_open(place, folder)
    batch[0], vae["latent_channels"] = "batch", 3
    replace(folder / "manifest.json", stamped(manifest))
    assert "vae.latent_channels is 3, and unet.out_channels is 4" in fails_to_open(place, folder)


def manifests_that_lie(place: Place) -> None:
    """A number or a dimension of a valid manifest changed: refused when it opens or when it runs, or harmless."""
    rng = random.Random(1)
    folder = linked(place, "lies")
    text = (place.engine / "manifest.json").read_text()
    statuses = []
    for _ in range(15):
        manifest = json.loads(text)
        # Most values are step counts of schedulers.
        section = rng.choice(("unet", "components", "text_encoder", "vae", "tokenizer", "schedulers"))
        way = rng.choice(list(_values(manifest[section], (section,))))
        holder = manifest
        for key in way[:-1]:
            holder = holder[key]
        old = holder[way[-1]]
        holder[way[-1]] = (
            rng.choice([old + 1, old * 2, max(1, old // 2), 1])
            if isinstance(old, int | float)
            else rng.choice(
                ["batch", "tokens", "height", "width_1", "contexts", "float32", "int64", "update", "vae_decoder"]
            )
        )
        replace(folder / "manifest.json", stamped(manifest))
        try:
            engine = place.open(folder)
        except (*structures.ERRORS.values(), native.NativeError) as error:
            statuses.append(next((s for s, kind in structures.ERRORS.items() if isinstance(error, kind)), UNSUPPORTED))
            assert getattr(error, "status", 0) in (0, UNSUPPORTED, OUT_OF_MEMORY), (way, error)
            continue
        session = engine.session()
        params = generate_params(engine.library, latents_only=0, steps=1)
        params.gamma_attn.value = 0.01
        status = generate(session, params)
        assert status == OK or refused(session, status), (way, old)
        statuses.append(status)
        session.close()
        engine.close()
    assert len(set(statuses)) > 1


def _values(data: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The paths to all values except lists and objects."""
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield from _values(data[key], (*way, key))
    elif isinstance(data, int | float | str) and not isinstance(data, bool):
        yield way


# ONNX Runtime.


def libraries_that_are_not_onnxruntime(place: Place, stubs: dict[str, Path]) -> None:
    library = place.load()
    text_file = place.scratch / "libonnxruntime.so"
    text_file.write_text("not a library")

    def said(path: Path | str) -> str:
        try:
            library.open(place.engine, onnxruntime=path, cache=place.cache)
        except structures.ERRORS[BACKEND] as error:
            return str(error)
        raise AssertionError(f"{path} was accepted")

    for path in (place.scratch / "missing.so", text_file, place.scratch, "/dev/null", "x" * 5000, "with space"):
        text = said(path)
        assert "ONNX Runtime cannot be loaded" in text and str(path)[:40] in text and "EBCA_ORT_LIB" in text, text
    for path in ("libm.so.6", str(stubs["nothing"])):
        assert "has no OrtGetApiBase; name another one" in said(path)
    assert "ONNX Runtime 1.2.3 has no API" in said(stubs["old"]) and "or newer" in said(stubs["old"])
    assert "has no API" in said(stubs["null"])
    params = library.init("engine_params")
    params.path = os.fsencode(place.engine)
    os.environ["EBCA_ORT_LIB"] = str(text_file)
    assert library.lib.ebca_engine_open(byref(params), byref(c_void_p())) == BACKEND
    assert str(text_file) in library.last_error()
    # After all of these, the right one works.
    works(library.open(place.engine, cache=place.cache).session())


def numbers_of_threads(place: Place) -> None:
    library = place.load()
    for threads in (-(2**31), -1, 2**31 - 1, 100_000):
        try:
            library.open(place.engine, cache=place.cache, threads=threads)
        except structures.ERRORS[PARAMETER] as error:
            assert f"threads is {threads}" in str(error)
        else:
            raise AssertionError(threads)
    engine = library.open(place.engine, cache=place.cache, threads=3)
    assert engine.info().threads == 3
    works(engine.session())


# The cache.


def caches_that_fail(place: Place) -> None:
    library = place.load()

    def said(cache: Path) -> str:
        """The one warning about a cache, whose engine works."""
        told: list[str] = []
        engine = library.open(place.engine, cache=cache, log=lambda level, text: told.append(text))
        works(engine.session())
        (text,) = told
        return text

    (place.scratch / "file").write_text("")
    for cache in (
        place.scratch / "file",
        place.scratch / "file" / "below",
        Path("/proc/self/cache"),
        Path("/dev/null/x"),
    ):
        text = said(cache)
        assert "cannot be kept in" in text and str(cache) in text and "EBCA_CACHE_DIR" in text, text
    if os.geteuid() != 0:
        closed = place.scratch / "closed"
        closed.mkdir(mode=0o500)
        assert "cannot be kept in" in said(closed)
    # A cache that is deleted under an open engine is made again; if that fails, there is a status.
    cache = place.scratch / "cache"
    engine = library.open(place.engine, cache=cache)
    session = engine.session()
    works(session)
    shutil.rmtree(cache)
    works(session)
    for content in (b"", b"broken", None):
        prepared = next(cache.glob("*/text_encoder.onnx"))
        prepared.unlink() if content is None else prepared.write_bytes(content)
        works(session)
    shutil.rmtree(cache)
    cache.write_text("a file is in the way")
    works(session)
    cache.unlink()
    works(session)
    # The same for the engine directory: open graphs keep working, graphs to be opened name the missing file.
    copy = place.scratch / "engine"
    shutil.copytree(place.engine, copy)
    session = place.open(copy).session()
    shutil.rmtree(copy)
    text = refused(session, generate(session, generate_params(library)))
    assert str(copy) in text and "is missing" in text


# Cancelling, and callbacks that call back.


def cancelling(place: Place) -> None:
    said: list[str] = []
    engine = place.open(log=lambda level, message: said.append(message) or hooks["log"]())
    session, library = engine.session(), engine.library
    hooks: dict[str, Callable[[], Any]] = {"log": lambda: None}
    long_prompt = structures.Prompt((c_char_p * 1)(b"circle " * 100), 1)

    def at_step(last: int, action: Callable[[], int]) -> Any:
        return structures.StepCallback(lambda info, _: action() if info.contents.index == last else 1)

    def cancel() -> int:
        session.cancel()
        return 1

    def cancelled(status: int, text: str) -> None:
        assert status == CANCELLED and text in session.last_error(), (status, session.last_error())

    pixels = (ctypes.c_uint8 * (64 * 64 * 3))(*[255] * (64 * 64 * 3))
    image = (structures.Image * 1)(structures.Image(pixels, 64, 64, 3))
    for action in (lambda: 0, cancel):
        for last in range(3):
            callback = at_step(last, action)
            text = f"cancelled after {last + 1} of "
            cancelled(generate(session, generate_params(library, steps=3, on_step=callback)), text + "3")
            cancelled(invert(session, invert_params(library, steps=4, on_step=callback)), text)
            params = generate_params(library, steps=3, scheduler=None, on_step=callback, image_count=1, images=image)
            params.mask_count, params.masks = 1, image
            cancelled(generate(session, params), text)
    # Before the first evaluation: the text encoder warns that the prompt is truncated.
    hooks["log"] = cancel
    cut: Any = {"prompt": long_prompt, "long_prompts": 0}
    cancelled(generate(session, generate_params(library, **cut)), "cancelled in text_encoder")
    cancelled(invert(session, invert_params(library, **cut)), "cancelled in text_encoder")
    hooks["log"] = lambda: None
    assert said
    # Before a call: it is cancelled, whatever it is; and no other.
    for _ in range(2):
        cancel()
        cancelled(generate(session, generate_params(library, steps=0)), "before the first evaluation")
    cancel()
    cancel()
    cancelled(invert(session, invert_params(library)), "before the first evaluation")
    works(session)
    cancel()
    assert library.lib.ebca_session_reset_cancel(session.handle) == OK
    works(session)
    # From another thread, at any moment.
    stop = threading.Event()

    def keep_cancelling() -> None:
        while not stop.wait(0.003):
            cancel()

    other = threading.Thread(target=keep_cancelling)
    other.start()
    statuses = [generate(session, generate_params(library, steps=6, latents_only=0)) for _ in range(20)]
    stop.set()
    other.join()
    assert set(statuses) <= {OK, CANCELLED} and CANCELLED in statuses
    session.reset_cancel()
    works(session)


def callbacks_that_call_back(place: Place) -> None:
    engine = place.open()
    session, library = engine.session(), engine.library
    lib, second = library.lib, engine.session()
    seen: list[str] = []

    def everything(info: Any, _: Any) -> int:
        for function, params in (
            (lib.ebca_session_generate, generate_params(library)),
            (lib.ebca_session_invert, invert_params(library)),
        ):
            out = c_void_p()
            assert function(session.handle, byref(params), byref(out)) == PARAMETER and out.value is None
            assert "in another call" in library.last_error()
        # Other sessions are free to do anything.
        assert generate(second, generate_params(library)) == OK
        assert generate(second, generate_params(library, steps=0)) == PARAMETER
        assert engine.info().model == b"shapes"
        third = engine.session()
        third.close()
        with_error = c_void_p()
        assert lib.ebca_session_create(engine.handle, byref(structures.SessionParams()), byref(with_error)) == PARAMETER
        seen.append(library.last_error())
        return 1

    params = generate_params(library, steps=2, on_step=structures.StepCallback(everything))
    # Failures inside the callback are not errors of this session: `generate` checks that it has none.
    assert generate(session, params) == OK
    assert len(seen) == 2
    # The engine may be freed while its sessions work.
    gone = structures.StepCallback(lambda info, _: engine.close() or 1 if info.contents.index == 0 else 1)
    assert generate(session, generate_params(library, steps=3, latents_only=0, on_step=gone)) == OK
    works(session)
    works(second)
    session.close()
    second.close()
