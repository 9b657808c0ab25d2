"""The Python binding of the library: `ebca.runtime.native`."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

from ebca.errors import BackendError, EngineError, ParameterError
from ebca.runtime import native
from ebca.runtime.native import structures

PROMPT = "a red circle"


def test_context_managers_close_engines_and_sessions(library: native.Library, shapes_dir: Path) -> None:
    with library.open(shapes_dir) as engine, engine.session() as session:
        result = session.generate(PROMPT, steps=1, seed=1)
        assert result.pixels is not None and result.pixels.shape == (1, 64, 64, 3)
    assert not session.handle and not engine.handle
    session.close()
    engine.close()
    for call in (engine.info, engine.session):
        with pytest.raises(EngineError, match="this engine is closed"):
            call()


def test_errors_have_a_problem_and_a_remedy(library: native.Library, shapes: native.Engine) -> None:
    with shapes.session() as session:
        with pytest.raises(ParameterError) as caught:
            session.generate(PROMPT, steps=3, guidance_scale=float("inf"))
        assert (caught.value.problem, caught.value.remedy) == ("guidance_scale is inf", "give a finite number")
        lib = library.lib
        for owner, handle in (("", ()), ("session_", (session.handle,))):
            assert getattr(lib, f"ebca_{owner}last_problem")(*handle) == b"guidance_scale is inf"
            assert getattr(lib, f"ebca_{owner}last_remedy")(*handle) == b"give a finite number"
            assert getattr(lib, f"ebca_{owner}last_error")(*handle) == b"guidance_scale is inf; give a finite number"
        session.generate(PROMPT, steps=1, output="latents")
        assert lib.ebca_session_last_problem(session.handle) == lib.ebca_session_last_remedy(session.handle) == b""
    with pytest.raises(ParameterError):
        shapes.session(63, 64)
    assert lib.ebca_engine_last_problem(shapes.handle) == b"height is 63"
    assert lib.ebca_engine_last_remedy(shapes.handle) == b"give a multiple of 4, such as 60 or 64"


def test_a_parameter_that_the_library_lacks_is_refused(shapes: native.Engine) -> None:
    with shapes.session() as session, pytest.raises(ParameterError, match="'image_guidance_scale' is not a parameter"):
        session.generate(PROMPT, image_guidance_scale=1.5)


def test_what_on_step_raises_ends_the_call(shapes: native.Engine) -> None:
    def on_step(info: structures.StepInfo) -> bool:
        raise RuntimeError("from the host")

    with shapes.session() as session, pytest.raises(RuntimeError, match="from the host"):
        session.generate(PROMPT, steps=2, on_step=on_step)


def test_none_means_not_given(shapes: native.Engine) -> None:
    with shapes.session() as session:
        plain = session.generate(PROMPT, steps=2, seed=3, output="latents")
        given = {"strength": None, "guidance_scale": None, "scheduler": None, "repaint": None, "latents": None}
        assert np.array_equal(
            session.generate(PROMPT, steps=2, seed=3, output="latents", **given).latents, plain.latents
        )


def test_the_library_is_found(library_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBCA_CPP_LIB", str(library_file))
    assert native.find_library() == library_file
    assert native.Library().version == "0.1.0"
    monkeypatch.setenv("EBCA_CPP_LIB", str(tmp_path / "libebca.so"))
    with pytest.raises(BackendError, match=r"libebca\.so' does not exist; install a wheel built with EBCA_NATIVE=1"):
        native.Library()
    (tmp_path / "libebca.so").write_text("this is not a library")
    with pytest.raises(BackendError, match="cannot be loaded"):
        native.Library()


def test_the_binding_imports_little() -> None:
    """Of ebca, only errors and its own modules."""
    for path in Path(native.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                root = name.partition(".")[0]
                own = name == "ebca.errors" or name.startswith("ebca.runtime.native")
                assert own or root == "numpy" or root in sys.stdlib_module_names, (path.name, name)
