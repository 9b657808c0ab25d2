"""Backends that open components for given sizes, keep them open, and share scratch memory, as ONNX Runtime's CUDA
provider does. Here ONNX Runtime on the CPU plays that part, on a CUDA device without a GPU."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")

from helpers import derived, manifests
from helpers.driver import HostDriver, host_device

import ebca
from ebca.engines.backends import registry
from ebca.engines.backends.protocol import Arrays, BackendOptions, Call, Runner
from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.manifest import Component
from ebca.errors import DeviceMemoryError
from ebca.runtime.engine import Engine

SETTINGS: dict[str, Any] = {"steps": 3, "scheduler": "ddim", "seed": 1, "gamma_attn": 0.003, "output": "np"}
PROMPT = "a red circle"


class FixedShapes:
    """Wraps a backend. Its components refuse arrays of other sizes than they were opened for; `opened` counts openings
    by component, and `refuse` is what is raised at the next ones."""

    name = "onnxruntime"
    fixes_shapes = stays_open = shares_scratch = True

    def __init__(self) -> None:
        self.inner = registry.create("onnxruntime", BackendOptions())
        self.opened: Counter[str] = Counter()
        self.refuse: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def identity(self) -> dict[str, str]:
        return {"fixed": "shapes"}

    def open(self, graph: Path, component: Component, dimensions: Mapping[str, int] | None = None) -> Runner:
        assert dimensions is not None
        if self.refuse:
            raise self.refuse.pop()
        self.opened[component.graph] += 1
        return FixedRunner(self.inner.open(graph, component), component, dimensions)


class FixedRunner:
    def __init__(self, inner: Runner, component: Component, dimensions: Mapping[str, int]) -> None:
        self._inner = inner
        self._component = component
        self._dimensions = dimensions

    def workspace_bytes(self, inputs: Arrays, outputs: Arrays) -> int:
        return 0

    def bind(self, inputs: Arrays, outputs: Arrays, workspace: int = 0, once: bool = False) -> Call:
        specs = {**self._component.inputs, **self._component.outputs}
        for name, array in (*inputs.items(), *outputs.items()):
            wanted = [self._dimensions.get(dim, dim) for dim in specs[name].shape]  # type: ignore[arg-type]
            assert sorted(wanted) == sorted(array.shape), name
        return self._inner.bind(inputs, outputs, workspace)


Opened = tuple[Engine, FixedShapes, HostDriver]


@pytest.fixture
def opened(shapes_dir: Path) -> Iterator[Opened]:
    device, driver = host_device()
    backend = FixedShapes()
    with Engine(open_directory(shapes_dir), backend, device) as engine:  # type: ignore[arg-type]
        yield engine, backend, driver


def on_cpu(shapes_dir: Path, **settings: Any) -> np.ndarray:
    with ebca.load(shapes_dir, "cpu", "onnxruntime") as engine, engine.session() as session:
        return session.generate(PROMPT, **settings).images[0]


def test_images_equal_the_cpus_and_every_component_is_opened_once(opened: Opened, shapes_dir: Path) -> None:
    engine, backend, _ = opened
    with engine.session() as session:
        first = session.generate(PROMPT, **SETTINGS).images[0]
        before = backend.opened.copy()
        again = session.generate(PROMPT, **SETTINGS).images[0]
    assert np.array_equal(first, again) and backend.opened == before
    # The time embeddings of a run are computed together, at most 2e-6 from those that are computed alone.
    assert np.abs(first - on_cpu(shapes_dir, **SETTINGS)).max() < 1e-4
    manifest = engine.manifest
    once = {manifest.components[name].graph for name in manifest.unet.segments}
    # For the rows of a step nothing runs it: it is opened for the table of embeddings.
    assert all(backend.opened[graph] <= 2 for graph in once)
    assert backend.opened["text_encoder.onnx"] == backend.opened["vae_decoder.onnx"] == 1


def test_the_second_image_captures_nothing(opened: Opened) -> None:
    engine, _, driver = opened
    with engine.session() as session:
        session.generate(PROMPT, **SETTINGS)
        before = driver.count.copy()
        session.generate("two blue squares", **SETTINGS)
    assert driver.count["capture"] == before["capture"] and driver.count["launch"] - before["launch"] == 1


def test_recorded_work_is_captured_again_after_another_component_was_opened(opened: Opened, shapes_dir: Path) -> None:
    """What it takes from the shared scratch memory may have been given to the new one for good."""
    engine, _, driver = opened
    image = np.full((64, 64, 3), 0.5, np.float32)
    with engine.session() as session:
        expected = session.generate(PROMPT, **SETTINGS).images[0]
        before = driver.count["capture"]
        session.generate(PROMPT, image=image, strength=0.5, **SETTINGS)
        assert driver.count["capture"] > before
        before = driver.count["capture"]
        assert np.array_equal(session.generate(PROMPT, **SETTINGS).images[0], expected)
        assert driver.count["capture"] == before


def test_the_two_sizes_used_last_stay_open(opened: Opened) -> None:
    engine, backend, _ = opened
    component, graph = engine.manifest.unet.segments[1], ""
    graph = engine.manifest.components[component].graph
    sizes = [{"batch": n, "contexts": 1, "tokens": 77, "height": 8, "width": 8} for n in (1, 2, 3)]
    for one in (0, 1, 0, 1):
        engine.runner(component, sizes[one])
    assert backend.opened[graph] == 2
    engine.runner(component, sizes[0])
    engine.runner(component, sizes[2])
    engine.runner(component, sizes[0])
    assert backend.opened[graph] == 3
    engine.runner(component, sizes[1])
    assert backend.opened[graph] == 4


def test_texts_are_encoded_in_pairs_with_the_same_result(opened: Opened, shapes_dir: Path) -> None:
    engine, backend, _ = opened
    ids = engine.tokenizer.encode([PROMPT, "", "a blue square"]).ids
    with ebca.load(shapes_dir, "cpu", "onnxruntime") as plain:
        for count in (1, 2, 3):
            # A batch of another size may sum in another order.
            assert np.abs(engine.encode(ids[:count]).contexts - plain.encode(ids[:count]).contexts).max() < 1e-5
    assert backend.opened["text_encoder.onnx"] == 1


def test_without_room_what_sampling_does_not_need_is_closed(opened: Opened) -> None:
    engine, backend, _ = opened
    with engine.session() as session:
        expected = session.generate(PROMPT, **SETTINGS).images[0]
    with engine.session(height=32, width=32) as other:
        backend.refuse = [DeviceMemoryError("the GPU has no room")]
        other.generate(PROMPT, **SETTINGS)
        assert not backend.refuse
        # Opened again, and right.
        before = backend.opened["text_encoder.onnx"]
        with engine.session() as session:
            assert np.array_equal(session.generate(PROMPT, **SETTINGS).images[0], expected)
        assert backend.opened["text_encoder.onnx"] == before + 1
    # Nothing is left to close.
    backend.refuse = [DeviceMemoryError("the GPU has no room")] * 8
    with engine.session(height=40, width=40) as session, pytest.raises(DeviceMemoryError, match="no room"):
        session.generate(PROMPT, **SETTINGS)


def test_images_between_segments_may_have_their_channels_last(shapes_dir: Path, tmp_path: Path) -> None:
    moved = derived.with_channels_last(shapes_dir, tmp_path / "engine")
    for settings in (SETTINGS, {**SETTINGS, "energies": True, "attention_maps": True}):
        made = []
        for directory in (shapes_dir, moved):
            with ebca.load(directory, "cpu", "onnxruntime") as engine, engine.session() as session:
                made.append(session.generate(PROMPT, **settings))
        # The same products; ONNX Runtime may place a Transpose elsewhere and convolve in another order.
        assert np.abs(made[0].images[0] - made[1].images[0]).max() < 1e-4


def test_a_manifest_names_only_images_between_segments_channels_last(shapes_dir: Path, tmp_path: Path) -> None:
    moved = derived.with_channels_last(shapes_dir, tmp_path / "engine")
    names = manifests.load(moved)["unet"]["channels_last"]["onnxruntime"]
    for name in ("sample", "layer_00.q", "nothing"):
        manifests.edit(
            moved, lambda data, name=name: data["unet"].update(channels_last={"onnxruntime": [*names, name]})
        )
        with pytest.raises(ebca.EngineError, match="channels_last" if name != "nothing" else "nothing"):
            open_directory(moved)
