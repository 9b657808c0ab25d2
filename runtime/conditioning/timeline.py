"""Values that change from evaluation to evaluation: step sizes and weights of main prompt and editing prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ebca.engines.contract.manifest import LayerSpec
from ebca.runtime.conditioning import edits as editing
from ebca.runtime.conditioning.edits import Edit, EditValues
from ebca.runtime.conditioning.prompts import Prompts
from ebca.runtime.conditioning.schedules import Gamma
from ebca.runtime.conditioning.schedules import resolve as resolve_schedule
from ebca.runtime.execution.control import ControlArrays, EnergyControl, layer_masks, resolve
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown


@dataclass(frozen=True, repr=False)
class Guidance(Shown):
    """How the prompts steer a generation.

    Attributes:
        guidance_scale: of classifier-free guidance. 1 or less: only the conditional half is evaluated. None: the
            engine's default, 7.5 for Stable Diffusion.
        gamma_attn, gamma_norm: step sizes of the context update: a number, a Schedule, or one value per evaluation
            (RePaint: per step).
        norm_factor: factor of |k|^2 in the norm term's softmax: 1 as in the authors' code, 0.5 as in the paper.
        edits: editing prompts, added to the main prompt or taken away from it.
        reset_edits: start every evaluation from the embeddings of the editing prompts. By default, their contexts carry
            over from evaluation to evaluation, as in the authors' code.
    """

    guidance_scale: float | None = rules.GENERATE.guidance_scale
    gamma_attn: Gamma = rules.GENERATE.gamma_attn
    gamma_norm: Gamma = rules.GENERATE.gamma_norm
    norm_factor: float = rules.GENERATE.norm_factor
    edits: tuple[Edit, ...] = ()
    reset_edits: bool = rules.GENERATE.reset_edits


@dataclass(frozen=True)
class Timeline:
    """Values of m evaluations.

    Attributes:
        gamma_attn, gamma_norm: [m] float32, of the main prompt.
        edits: values of the editing prompts.
        norm_factor: the same for all evaluations.
    """

    gamma_attn: np.ndarray
    gamma_norm: np.ndarray
    edits: EditValues
    norm_factor: float

    @classmethod
    def of(cls, guidance: Guidance, steps: int, evaluations: int, scheduler: str) -> "Timeline":
        """Evaluate all schedules of a guidance.

        Args:
            guidance: numbers and schedules.
            steps: scheduler steps.
            evaluations: number of UNet evaluations m.
            scheduler: its name, for messages.

        Raises:
            ParameterError: a schedule that does not fit, or edits that `edits.resolve` refuses.
        """
        attn = resolve_schedule(guidance.gamma_attn, steps, evaluations, "gamma_attn", scheduler)
        norm = resolve_schedule(guidance.gamma_norm, steps, evaluations, "gamma_norm", scheduler)
        edits = editing.resolve(guidance.edits, steps, evaluations, scheduler)
        return cls(attn, norm, edits, guidance.norm_factor)

    def controls(
        self,
        prompts: Prompts,
        layers: tuple[LayerSpec, ...],
        sizes: Mapping[str, int],
        mask: np.ndarray | None = None,
    ) -> list[ControlArrays]:
        """One control per evaluation.

        Args:
            prompts: the encoded prompts.
            layers: cross-attention layers of the manifest.
            sizes: of the executor: batch, contexts, tokens, height, width.
            mask: [n or 1,1,h,w], 1 where the update of the main context is computed; None: everywhere.
        """
        factors = prompts.token_factors()
        rows, _, tokens = factors.shape
        masks = None
        if mask is not None:
            # The mask applies to all parts of the rows.
            masks = layer_masks(np.tile(mask, (rows // len(mask), 1, 1, 1)) if len(mask) > 1 else mask, layers, sizes)
        controls = []
        for i, (attn, norm) in enumerate(zip(self.gamma_attn, self.gamma_norm, strict=True)):
            edit_attn = np.broadcast_to(self.edits.gamma_attn[i][None, :, None], (rows, sizes["contexts"] - 1, tokens))
            control = EnergyControl(
                gamma_attn=np.concatenate([factors * attn, edit_attn], 1),
                gamma_norm=np.append(norm, self.edits.gamma_norm[i]),
                weights=np.append(np.float32(1), self.edits.weights[i]),
                tie_unconditional=prompts.unconditional is not None,
                rows_per_image=1 + prompts.unconditional_parts,
                norm_factor=self.norm_factor,
            )
            controls.append(resolve(control, layers, sizes, masks))
        return controls
