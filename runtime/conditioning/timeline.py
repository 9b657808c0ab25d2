"""What changes from evaluation to evaluation: step sizes and weights of the main prompt and of the editing prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ebca.engines.contract.manifest import LayerSpec
from ebca.runtime.conditioning import edits as editing
from ebca.runtime.conditioning.edits import Edit, EditValues
from ebca.runtime.conditioning.prompts import Prompts
from ebca.runtime.conditioning.schedules import Gamma
from ebca.runtime.conditioning.schedules import resolve as resolve_schedule
from ebca.runtime.execution.control import ControlArrays, EnergyControl, layer_masks, resolve


@dataclass(frozen=True)
class Timeline:
    """Values of m evaluations, float32: gamma_attn [m] and gamma_norm [m] of the main prompt; those of the edits."""

    gamma_attn: np.ndarray
    gamma_norm: np.ndarray
    edits: EditValues

    @classmethod
    def plan(
        cls, gamma_attn: Gamma, gamma_norm: Gamma, edits: Sequence[Edit], steps: int, evaluations: int, name: str
    ) -> "Timeline":
        """Lay out everything that may be a schedule. `name` is the scheduler's, for messages.

        Raises:
            ParameterError: a schedule that does not fit, or edits that `edits.resolve` refuses.
        """
        attn = resolve_schedule(gamma_attn, steps, evaluations, "gamma_attn", name)
        norm = resolve_schedule(gamma_norm, steps, evaluations, "gamma_norm", name)
        return cls(attn, norm, editing.resolve(edits, steps, evaluations, name))

    def controls(
        self,
        prompts: Prompts,
        layers: tuple[LayerSpec, ...],
        sizes: Mapping[str, int],
        *,
        token_weights: Mapping[str | int, float],
        norm_factor: float,
        mask: np.ndarray | None,
    ) -> list[ControlArrays]:
        """One control per evaluation.

        Args:
            sizes: of the executor: batch, contexts, tokens, height, width.
            mask: [n or 1,1,h,w], where the update of the main context looks; None: everywhere.
        """
        factors = prompts.token_factors(token_weights)
        rows, _, tokens = factors.shape
        masks = None
        if mask is not None:
            # Both halves of the rows are masked.
            masks = layer_masks(np.tile(mask, (rows // len(mask), 1, 1, 1)) if len(mask) > 1 else mask, layers, sizes)
        controls = []
        for i, (attn, norm) in enumerate(zip(self.gamma_attn, self.gamma_norm, strict=True)):
            edit_attn = np.broadcast_to(self.edits.gamma_attn[i][None, :, None], (rows, sizes["contexts"] - 1, tokens))
            control = EnergyControl(
                gamma_attn=np.concatenate([factors * attn, edit_attn], 1),
                gamma_norm=np.append(norm, self.edits.gamma_norm[i]),
                weights=np.append(np.float32(1), self.edits.weights[i]),
                tie_unconditional=prompts.unconditional is not None,
                norm_factor=norm_factor,
            )
            controls.append(resolve(control, layers, sizes, masks))
        return controls
