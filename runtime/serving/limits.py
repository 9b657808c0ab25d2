"""What one request may ask of a service."""

from dataclasses import dataclass

from ebca.errors import ParameterError
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.sampling.repaint import RePaint


@dataclass(frozen=True)
class Limits:
    """Limits of a service. `ebca-serve` has an option for each.

    Attributes:
        pixels: of all images of one request together.
        images: of one request.
        steps: of the scheduler.
        upload_bytes: of a request's body.
        upload_pixels: of each image or mask in it.
        text: characters of all its prompts together.
        seconds: from the request to its images; a request may ask for less.
        queue: requests that wait.
        keep: finished jobs in the store; the oldest are removed.
    """

    pixels: int = 8 * 1024 * 1024
    images: int = 8
    steps: int = 150
    upload_bytes: int = 32 * 1024 * 1024
    upload_pixels: int = 16 * 1024 * 1024
    text: int = 20_000
    seconds: float = 600.0
    queue: int = 100
    keep: int = 1000

    def check(self, request: GenerateRequest) -> None:
        """Raise ParameterError for a request that would take too long. Wrong types are left to the runtime's checks."""
        _at_most("steps", request.steps, self.steps)
        repaint = request.image_inputs.repaint
        if isinstance(repaint, RePaint):
            # Each stretch of steps is denoised so often.
            _at_most("jump_count of repaint", repaint.jump_count, 20)
        values = request.values()
        texts = [values[name] for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")]
        texts += [edit.prompt for edit in request.guidance.edits]
        _at_most("the number of characters in all prompts", sum(_characters(text) for text in texts), self.text)

    def check_size(self, height: int, width: int, count: int) -> None:
        """Raise ParameterError for more or larger images than a request may ask for."""
        _at_most("num_images", count, self.images)
        if height * width * count > self.pixels:
            raise ParameterError(
                f"{count} x {width}x{height} is {height * width * count} pixels, and this service makes at most "
                f"{self.pixels} per request",
                "ask for smaller images, or for fewer at once",
            )

    def chosen_seconds(self, asked: float | None) -> float:
        """How long a request may take. Raises ParameterError for a time that is not positive or too long."""
        if asked is None:
            return self.seconds
        if not 0 < asked <= self.seconds:
            raise ParameterError(f"timeout_s is {asked:g}", f"give more than 0 and at most {self.seconds:g}")
        return asked


def _at_most(what: str, value: object, limit: int) -> None:
    if isinstance(value, int) and value > limit:
        # A number can be as long as the body.
        shown = str(value) if value < 10**12 else "more than 10^12"
        raise ParameterError(f"{what} is {shown}", f"this service takes at most {limit}")


def _characters(text: object) -> int:
    if isinstance(text, str):
        return len(text)
    return sum(_characters(one) for one in text) if isinstance(text, list | tuple) else 0
