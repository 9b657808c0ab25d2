"""Opens graphs with the product's backend and reports what ONNX Runtime made of them. Runs in the interpreter that has
onnxruntime-gpu, over the stand-ins:

    LD_LIBRARY_PATH=STANDINS PYTHONPATH=tests python -m helpers.cuda_standins.inspection JOBS.json REPORTS.json

Of the package only the backend and what it imports are loaded, so the interpreter needs numpy, onnx, onnxruntime-gpu
and psutil. A job is {graph, component, sizes}: a file, its component as in the manifest, and the sizes to open it for.
Its report is a `Report` as JSON.
"""

import collections
import json
import os
import sys
import tempfile
import time
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """What became of one graph.

    Attributes:
        host: operators that run on the CPU, and how many nodes of each.
        operators: the optimised graph's operators, and how many nodes of each.
        seconds: how long opening took, with writing the optimised graph.
        error: the first line of the error of the backend that refused it, else None.
    """

    host: dict[str, int]
    operators: dict[str, int]
    seconds: float
    error: str | None

    @property
    def nodes(self) -> int:
        return sum(self.operators.values())

    @property
    def copies(self) -> int:
        """Memcpy nodes: tensors that go to the CPU or come from it in every run."""
        return sum(count for operator, count in self.operators.items() if operator.startswith("Memcpy"))


def use_sources() -> None:
    """Make the package's modules importable from the source tree, without its public names and what they import."""
    root = Path(__file__).parents[3]
    package = types.ModuleType("ebca")
    package.__path__ = [str(root / "src" / "ebca"), str(root)]
    sys.modules["ebca"] = package


class Recorder:
    """Stands in for `onnxruntime.InferenceSession`: the same sessions with the same options, and a record of them.

    Attributes:
        session: the last one that was opened.
        optimised: where its graph was written.
    """

    def __init__(self, make: Any, folder: Path) -> None:
        self._make = make
        self.optimised = folder / "optimised.onnx"
        # Only the graph is of interest; the weights may be gigabytes.
        (folder / "optimised.data").symlink_to(os.devnull)
        self.session: Any = None

    def __call__(self, graph: str, options: Any, **settings: Any) -> Any:
        options.optimized_model_filepath = str(self.optimised)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.data")
        self.session = self._make(graph, options, **settings)
        return self.session

    def host(self) -> dict[str, int]:
        """Operators on the CPU, or everywhere but on the GPU."""
        return dict(
            collections.Counter(
                node.op_type
                for part in self.session.get_provider_graph_assignment_info()
                if part.ep_name != "CUDAExecutionProvider"
                for node in part.get_nodes()
            )
        )

    def operators(self) -> dict[str, int]:
        import onnx

        graph = onnx.load(self.optimised, load_external_data=False).graph
        return dict(collections.Counter(node.op_type for node in graph.node))


def inspect(graph: Path, component: Any, sizes: dict[str, int]) -> Report:
    """Open one graph as `ebca.engines.backends.onnxruntime_cuda` does."""
    import onnxruntime as ort

    from ebca.engines.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
    from ebca.engines.contract import dims
    from ebca.errors import BackendError

    dimensions = dims.fixed((t.shape for t in (*component.inputs.values(), *component.outputs.values())), sizes)
    make, error = ort.InferenceSession, None
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(make, Path(folder))
        ort.InferenceSession = recorder
        started = time.perf_counter()
        try:
            # Any stream but 0, which stands for none.
            OnnxRuntimeCudaBackend(stream=16).open(graph, component, dimensions)
        except BackendError as refused:
            error = str(refused).splitlines()[0]
        finally:
            ort.InferenceSession = make
        seconds = time.perf_counter() - started
        if recorder.session is None:
            return Report({}, {}, seconds, error)
        return Report(recorder.host(), recorder.operators(), seconds, error)


def main(jobs: str, reports: str) -> None:
    use_sources()
    from ebca.engines.contract.manifest import component_from_json

    found = [
        asdict(inspect(Path(job["graph"]), component_from_json(job["component"]), job["sizes"]))
        for job in json.loads(Path(jobs).read_text(encoding="utf-8"))
    ]
    Path(reports).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
