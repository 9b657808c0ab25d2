"""Where the tokens of a subject attend, against where the subject is in the finished image.

Exclusive attention needs tokens and layers that know the place early. This prints, for each layer and choice of tokens,
the share of subjects whose map has its maximum near the subject, after some evaluations.

  python -m ebca.bench.alignment.rivals.located --model examples/shapes/shapes --count 48
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ebca import console
from ebca.bench import options
from ebca.bench.alignment.rivals.attention import Guide, Run
from ebca.bench.alignment.rivals.cells import Cell
from ebca.bench.alignment.rivals.exclusive import smooth
from ebca.bench.alignment.rivals.methods import BASE
from ebca.bench.alignment.rivals.model import DEFAULT, Captions, Model
from ebca.bench.alignment.rivals.readers import Readers
from ebca.bench.alignment.rivals.sampler import sample
from ebca.bench.alignment.scenes import SIZE
from ebca.errors import ParameterError

PROGRAM = "ebca.bench.alignment.rivals.located"

EVALUATIONS = (0, 2, 4, 8, 16)
NEAR = 12.0
"""Pixels between the maximum and the centre of the subject, which is 10 to 22 pixels wide in images of 64 x 64."""


class Recorder(Guide):
    """Changes nothing and keeps the smoothed maps: by tokens, layer and evaluation, [n,G,h,w] each."""

    def begin(self, run: Run) -> None:
        self.maps: dict[tuple[str, int, int], np.ndarray] = {}
        self._evaluation = 0

    def attend(self, run: Run, layer: int, scores: Tensor) -> Tensor:
        shares = scores.softmax(-1)
        if self._evaluation in EVALUATIONS:
            conditional = shares[run.unconditional :].mean(1)  # [n,N,T]
            side = round(conditional.shape[1] ** 0.5)
            for name, tokens in choices(run.captions).items():
                maps = (conditional @ tokens.transpose(1, 2)).transpose(1, 2)
                self.maps[name, layer, self._evaluation] = smooth(maps.unflatten(-1, (side, side))).cpu().numpy()
        return shares

    def after(self, run: Run, evaluation: int) -> None:
        self._evaluation = evaluation + 1


def choices(captions: Captions) -> Mapping[str, Tensor]:
    """Which tokens may stand for a subject, [n,G,T] each."""
    return {
        "words": captions.groups,
        "the token after them": captions.subjects - captions.groups,
        "both": captions.subjects,
    }


def located(maps: np.ndarray, places: np.ndarray) -> float:
    """The share of subjects whose maximum in maps [n,G,h,w] is near their place (x, y, radius) in pixels, [n,G,3]."""
    side = maps.shape[-1]
    y, x = np.divmod(maps.reshape(*maps.shape[:2], -1).argmax(-1), side)
    distance = np.hypot((x + 0.5) * SIZE / side - places[..., 0], (y + 0.5) * SIZE / side - places[..., 1])
    return float((distance < NEAR).mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table for development prompts with three things. Returns the exit code."""
    return console.run(PROGRAM, lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    description, examples = (__doc__ or "").split("\n\n", 1)[1].rsplit("\n\n", 1)
    p = options.command_line(PROGRAM, description, f"examples:\n{examples}")
    p.add_argument(
        "--model", type=console.path, default=DEFAULT, metavar="DIR", help="pipeline folder made by examples/shapes"
    )
    p.add_argument("--count", type=int, default=48, metavar="N", help="images (default: 48)")
    p.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return p


def _run(args: argparse.Namespace) -> int:
    if args.count < 1:
        raise ParameterError(f"--count is {args.count}", "give 1 or more")
    model, recorder = Model(args.model, args.device), Recorder()
    cell = Cell(BASE, "three", "development", args.count)
    images = sample(model, recorder, cell.scenes, cell.seeds, cell.sampling)
    with Readers() as readers:
        places = readers.places(images, cell.scenes, cell.seeds)
    print(f"{'layer':>5} {'map':>7}  {'tokens':20}  " + "  ".join(f"{f'eval {e}':>7}" for e in EVALUATIONS))
    for (name, layer, first), maps in recorder.maps.items():
        if first == EVALUATIONS[0]:
            shares = [located(recorder.maps[name, layer, e], places) for e in EVALUATIONS]
            side = f"{maps.shape[-2]} x {maps.shape[-1]}"
            print(f"{layer:5} {side:>7}  {name:20}  " + "  ".join(f"{100 * share:6.0f}%" for share in shares))
    return 0


if __name__ == "__main__":
    sys.exit(main())
