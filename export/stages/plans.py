"""Plans: every segment, the text encoder and the VAE built ahead of time for GPUs that need not be in this machine."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ebca.engines.backends.tensorrt_library import platform_name
from ebca.engines.contract import dims, plans
from ebca.engines.contract.manifest import Component, TextEncoderSpec, VaeSpec
from ebca.engines.contract.plans import LibraryPlans, Plan, Range
from ebca.errors import ExportError
from ebca.export.plans.jobs import Job, jobs, unet_sizes
from ebca.export.plans.shapes import PlanOptions
from ebca.export.plans.tensorrt import Builder, Built, InputRange
from ebca.export.stages.context import Context, StageResult
from ebca.export.workspace import Workspace

OnPlan = Callable[[str, int], None]
"""Called with what is being built and the bytes of weights that are done. An exception that it raises ends it."""


def export(context: Context) -> StageResult:
    """Build the plans of the components that earlier stages wrote."""
    options, before = context.options.plans, context.before
    assert options is not None
    text_encoder, vae = (before.sections.get(name) for name in ("text_encoder", "vae"))
    work = jobs(options, before.components, before.sections["unet"], text_encoder, vae)
    built = build(work, options, before.components, text_encoder, vae, context.workspace, context.report)
    files = tuple(plan.file for entries in built.components.values() for plan in entries)
    return StageResult(files=files, sections={"plans": {options.library: built}})


def build(
    work: Sequence[Job],
    options: PlanOptions,
    components: Mapping[str, Component],
    text_encoder: TextEncoderSpec | None,
    vae: VaeSpec | None,
    workspace: Workspace,
    on_plan: OnPlan,
) -> LibraryPlans:
    """Build what is not built yet; each finished plan is kept if a later one fails.

    Raises:
        BackendError: the library is missing, or needs a GPU.
        ExportError: it cannot build a component, or built other tensors than the component has.
    """
    builder = Builder(options.library, options.capabilities, with_op=any(job.with_op for job in work))
    made: dict[str, list[Plan]] = {}
    done = 0
    for index, job in enumerate(work):
        component = components[job.component]
        text = f"plan {index + 1} of {len(work)}: {job.component} for {plans.describe(job.sizes)}"
        size = workspace.record(component.weights).size if component.weights else 0
        on_plan(text, done)
        plan = _plan(job, component)
        key = f"{job.file} {builder.version} {' '.join(options.capabilities)}"
        if workspace.facts(key) is None:
            _write(builder, plan, component, workspace, partial(_report, on_plan, text, done, size))
            workspace.put_files(key, [job.file], {})
        made.setdefault(job.component, []).append(plan)
        done += size
    return LibraryPlans(
        version=builder.version,
        compute_capabilities=options.capabilities or (builder.own_capability(),),
        platform=platform_name(),
        shapes=tuple(unet_sizes(shape, options, text_encoder, vae) for shape in options.shapes),
        components={name: tuple(entries) for name, entries in made.items()},
    )


def _write(
    builder: Builder, plan: Plan, component: Component, workspace: Workspace, on_fraction: Callable[[float], None]
) -> None:
    ranges = {name: input_range(spec.shape, plan.sizes) for name, spec in component.inputs.items()}
    built = builder.build(workspace.folder / component.graph, ranges, on_fraction)
    check_built(plan, built)
    path = workspace.folder / plan.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(built.plan)


def _report(on_plan: OnPlan, text: str, before: int, size: int, part: float) -> None:
    on_plan(text, before + int(part * size))


def _plan(job: Job, component: Component) -> Plan:
    return Plan(
        job.file, job.sizes, plans.resolve(component.inputs, job.sizes), plans.resolve(component.outputs, job.sizes)
    )


def check_built(plan: Plan, built: Built) -> None:
    """Raise ExportError if the library built other tensors than the manifest will say."""
    for expected, actual in ((plan.inputs, built.inputs), (plan.outputs, built.outputs)):
        shown = {
            name: (spec.dtype, tuple(d if isinstance(d, int) else -1 for d in spec.shape))
            for name, spec in expected.items()
        }
        if shown != dict(actual):
            odd = sorted(n for n in {*shown, *actual} if shown.get(n) != actual.get(n))
            raise ExportError(
                f"the plan '{plan.file}' has {odd[0]} as {actual.get(odd[0])} instead of {shown.get(odd[0])}",
                "please report the model",
            )


def input_range(shape: Sequence[dims.Dim], sizes: Mapping[str, Range]) -> InputRange:
    """An input's shape at the smallest, best and largest of all sizes."""
    return InputRange(*(dims.shape(shape, {name: r[which] for name, r in sizes.items()}) for which in range(3)))
