"""One run of ebca-run: a request, the size of its images, and its files."""

import argparse
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ebca.runtime.cli import names
from ebca.runtime.cli.progress import Steps
from ebca.runtime.cli.run_files import ResultFiles, preview_file, result_files, templates
from ebca.runtime.cli.run_repeat import repeated
from ebca.runtime.cli.run_request import given_files, image_count, request
from ebca.runtime.components import Components
from ebca.runtime.conditioning import edits as editing
from ebca.runtime.conditioning.prompts import Conditioning
from ebca.runtime.conditioning.sizes import SizeConditions
from ebca.runtime.images import inputs
from ebca.runtime.images.files import save_preview
from ebca.runtime.images.outputs import sheet
from ebca.runtime.images.preview import Preview
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.inputs import control_files, region_files, size_giver
from ebca.runtime.request.validate import check_inversion
from ebca.runtime.results import Result
from ebca.runtime.sampling.progress import StepInfo
from ebca.runtime.schema import parameters as rules
from ebca.runtime.session import Session


@dataclass(frozen=True)
class Job:
    """One run. Made by `of`.

    Attributes:
        args: the options.
        asked: the request. With a source prompt, it lacks the initial latents.
        count: number of images.
        files: what is written.
        given_size: (height, width) of the image to start from, else of the first for a ControlNet; None without any.
    """

    args: argparse.Namespace
    asked: GenerateRequest
    count: int
    files: ResultFiles
    given_size: tuple[int, int] | None

    @classmethod
    def of(cls, args: argparse.Namespace, number: int = 1, more: Mapping[str, Any] | None = None) -> "Job":
        """The run that these options ask for.

        Args:
            args: the options. If a file is named by a seed, and none is given, one is drawn.
            number: of the run, from 1, for names.
            more: fields of the request that replace those of the options.

        Raises:
            ParameterError: options that do not go together, a wrong name, or an image that cannot be read.
        """
        if args.seed is None and any(names.uses(flag, template, "seed") for flag, template in templates(args)):
            args = argparse.Namespace(**{**vars(args), "seed": [secrets.randbits(32)]})
        count = image_count(args)
        files = result_files(args, count, number)
        asked = request(args)
        if args.recorded is not None:
            asked = repeated(asked, args)
        if more:
            asked = GenerateRequest.of(**{**asked.values(), **more})
        image = args.image or size_giver(asked)
        return cls(args, asked, count, files, inputs.image_size(image) if image else None)

    @property
    def prompt(self) -> str | list[str]:
        """What the images show: one text for all of them, or one each."""
        text: str | list[str] = self.args.source_prompt if self.args.prompt is None else self.args.prompt
        return text

    @property
    def phases(self) -> int:
        """How many times the steps are run."""
        return 1 if self.args.source_prompt is None else 2

    @property
    def input_files(self) -> list[Path]:
        """The files that are read."""
        return [*(self.args.image or ()), *(self.args.mask or ()), *control_files(self.asked), *self.region_files]

    @property
    def region_files(self) -> list[Path]:
        """Those that regions of subjects are read from."""
        return region_files(self.asked)

    def size(self, engine: Components) -> tuple[int | None, int | None]:
        """Height and width of the images: as given, else about the model's size with the aspect ratio of the image."""
        vae, args = engine.manifest.vae, self.args
        if self.given_size is None or args.height is not None or args.width is not None or vae is None:
            return args.height, args.width
        return inputs.fitted_size(self.given_size, engine.manifest.unet.sample_size * vae.downscale, vae.downscale)

    def check(self, session: Session) -> dict[str, Any]:
        """Check everything before anything is computed. Returns the parameters that the image files will hold.

        Raises:
            ParameterError, EngineError: as in `Session.generate` and `Session.invert`.
        """
        source, asked = self.args.source_prompt, self.asked
        if source is not None:
            asked, steps = self._of_inversion()
            editing.resolve(asked.guidance.edits, steps, steps, "ddim")
            conditioning = Conditioning(source, **self._reading)
            sizes, manifest = SizeConditions(**self._sizes), session.engine.manifest
            check_inversion(conditioning, sizes, manifest, regularize=self.args.regularize)
            inputs.load_images(self.args.image, session.height, session.width)
        parameters = dict(session.check(asked))
        if source is not None:
            # The noise is found, not drawn.
            parameters["seed"] = None
        return self._described(parameters)

    def run(self, session: Session, steps: Steps) -> tuple[Result, dict[str, Any]]:
        """Make the images. Returns them with the parameters that their files hold.

        Raises the same errors as `Session.generate` and `Session.invert`.
        """
        asked, args = self.asked, self.args
        steps.watch = None
        for _, file in preview_file(args):
            steps.watch = partial(_show, session.preview(), file)
        if args.source_prompt is not None:
            asked, count = self._of_inversion()
            # Sampling would refuse them only after the inversion.
            editing.resolve(asked.guidance.edits, count, count, "ddim")
            steps.phase("inverting")
            found = session.invert(
                args.image,
                args.source_prompt,
                steps=count,
                regularize=args.regularize,
                **self._reading,
                **self._sizes,
                vae_tiling=asked.vae_tiling,
                on_step=steps,
            )
            asked = replace(asked, latents=found.latents)
        steps.phase("denoising")
        result = session.run(asked, steps)
        return result, self._described(result.parameters)

    @property
    def _reading(self) -> dict[str, Any]:
        """How the source prompt is read: as the prompt is."""
        conditioning = self.asked.conditioning
        made = {name: getattr(conditioning, name) for name in ("prompt_weighting", "long_prompts", "clip_skip")}
        # A prompt of its own has a second text of its own.
        return made if self.args.prompt is not None else {**made, "prompt_2": conditioning.prompt_2}

    @property
    def _sizes(self) -> dict[str, Any]:
        """What the model is told about sizes while the image is inverted: what it is told afterwards."""
        names = ("original_size", "crops_coords_top_left", "target_size")
        return {name: getattr(self.asked.sizes, name) for name in names}

    def _of_inversion(self) -> tuple[GenerateRequest, int]:
        """The request of an image that is inverted first, and its steps: by default those of inversions."""
        steps = rules.INVERT.steps if self.asked.steps is None else self.asked.steps
        return replace(self.asked, steps=steps), steps

    def _described(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {**parameters, **given_files(self.args)}


def _show(preview: Preview, file: Path, info: StepInfo) -> None:
    """Replace the file by what the latents look like now."""
    save_preview(sheet(preview(info.unit_latents)), file)
