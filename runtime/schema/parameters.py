"""Defaults and rules of parameters, the same in Python and C++.

Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
"""

from dataclasses import dataclass
from typing import Any

from ebca.errors import CancelledError, EbcaError, EngineError, NumericalError, OutOfMemoryError, ParameterError

DEFAULT_STRENGTH = 0.8
"""Image to image runs this share of the steps where strength is not given."""

DEFAULT_STEPS = 50
"""Steps where a request does not say, and the engine neither."""

DEFAULT_IMAGE_GUIDANCE_SCALE = 1.5
"""InstructPix2Pix follows the image this much where image_guidance_scale is not given."""

DEFAULT_DOWNSCALE = 8
"""Pixels per latent where the engine directory has no VAE to say it."""

MAX_PIXELS = 16777216
"""Pixels of one image: 4096 x 4096. Time grows with their square, where a model attends to itself."""

MAX_IMAGES = 4096
"""Images per call."""

MAX_MOVES = 1000000
"""Steps of RePaint in both directions."""

MAX_SUBJECTS = 16
"""Subjects of an image: the groups of tokens that the GPU kernels take."""

MAX_SUBJECT_POSITIONS = 1024
"""Positions of the map on which subjects are placed: what a GPU kernel holds in registers."""

MAX_PROMPT_WEIGHT = 10
"""Magnitude of a weight in a prompt."""

MAX_PROMPT_CHUNKS = 128
"""Chunks of a prompt: the text encoder runs once for each."""

MAX_SIZE_CONDITION = 16777216
"""A number that Stable Diffusion XL is told about sizes: exact in float32."""

MAX_SUBJECT_STRENGTH = 1000
"""Of subject_exclusion and subject_balance each."""


@dataclass(frozen=True)
class SessionDefaults:
    """What the fields of ebca_session_params are where they are not given."""

    height: int | None = None
    width: int | None = None
    batch: int = 1


@dataclass(frozen=True)
class EditDefaults:
    """What the fields of ebca_edit are where they are not given."""

    direction: int = 1
    alpha: float = 1.0
    gamma_attn: float = 0.0
    gamma_norm: float = 0.0


@dataclass(frozen=True)
class RePaintDefaults:
    """What the fields of ebca_repaint_params are where they are not given."""

    jump_length: int = 10
    jump_count: int = 10
    eta: float = 0.0
    update_known: bool = False


@dataclass(frozen=True)
class GenerateDefaults:
    """What the fields of ebca_generate_params are where they are not given."""

    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    gamma_attn: float = 0.0
    gamma_norm: float = 0.0
    norm_factor: float = 1.0
    reset_edits: bool = False
    strength: float | None = None
    composite: bool = True
    subject_exclusion: float = 2.0
    subject_balance: float = 1.5
    subject_window: float = 0.15
    prompt_weighting: bool = True
    long_prompts: bool = True
    clip_skip: int = 0


@dataclass(frozen=True)
class RegularizeDefaults:
    """What the fields of ebca_regularize_params are where they are not given."""

    rounds: int = 5
    rolls: int = 5
    auto_correlation: float = 20.0
    kl: float = 20.0
    seed: int = 0


@dataclass(frozen=True)
class InvertDefaults:
    """What the fields of ebca_invert_params are where they are not given."""

    steps: int = 50
    prompt_weighting: bool = True
    long_prompts: bool = True
    clip_skip: int = 0


SESSION = SessionDefaults()
EDIT = EditDefaults()
REPAINT = RePaintDefaults()
GENERATE = GenerateDefaults()
REGULARIZE = RegularizeDefaults()
INVERT = InvertDefaults()


@dataclass(frozen=True)
class Rule:
    """One rule about parameters: what an error says about it.

    Attributes:
        kind: the class of the error.
        problem: template of what is wrong; placeholders in braces are values.
        remedy: template of what to do about it, or "".
    """

    kind: type[EbcaError]
    problem: str
    remedy: str = ""

    def error(self, **values: Any) -> EbcaError:
        """The error to raise, with these values in its texts."""
        shown = {name: _shown(value) for name, value in values.items()}
        return self.kind(self.problem.format(**shown), self.remedy.format(**shown))

    def text(self, **values: Any) -> str:
        """Problem and remedy as one line, for a warning."""
        return str(self.error(**values))


def shortened(text: str, limit: int) -> str:
    """The text, or its first `limit` characters and how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit} more characters)"


def _shown(value: Any) -> str:
    """Numbers as C++ writes them; no value fills the screen."""
    return f"{value:g}" if isinstance(value, float) else shortened(str(value), 2000)


FINITE_NUMBER = Rule(ParameterError, "{field} is {value}", "give a finite number")
WHOLE_NUMBER = Rule(ParameterError, "{field} is {value}", "give a whole number")
TRUE_OR_FALSE = Rule(ParameterError, "{field} is {value}", "give True or False")
FUNCTION = Rule(ParameterError, "{field} is {value}", "give a function, or None")
AT_LEAST_ONE = Rule(ParameterError, "{field} is {value}", "give 1 or more")
NUMBER_RANGE = Rule(ParameterError, "{field} is {value}", "give a number from {low} to {high}")
NORM_FACTOR = Rule(ParameterError, "norm_factor is {value}", "give 1 (authors' code) or 0.5 (paper)")
SIDE_NOT_MULTIPLE = Rule(ParameterError, "{field} is {value}", "give a multiple of {multiple}, such as {low} or {high}")
BATCH = Rule(ParameterError, "batch is {value}", "give 1 or more images")
COUNT_PER_IMAGE = Rule(ParameterError, "{count} {items} were given for a batch of {batch}", "give one, or one each")
IMAGE_TOO_LARGE = Rule(
    ParameterError,
    "{height} x {width} pixels are too many for one image",
    "make a smaller one: the limit is {limit} pixels (4096 x 4096)",
)
BATCH_TOO_LARGE = Rule(ParameterError, "batch is {value}", "make several calls of up to {limit} images each")
NO_MEMORY = Rule(
    OutOfMemoryError,
    "no memory for {rows} rows of {height} x {width} latents",
    "make a smaller image, or fewer at once",
)
MEMORY_NEEDED = Rule(
    OutOfMemoryError,
    "at least {needed} of memory{where} is needed for {what}, and {available} can be had",
    "make a smaller image, or fewer at once",
)
MEMORY_NEEDED_UNTILED = Rule(
    OutOfMemoryError,
    "at least {needed} of memory{where} is needed for {what}, and {available} can be had",
    "set vae_tiling=True (ebca-run: --vae-tiling), make a smaller image, or fewer at once",
)
MEMORY_SHORT = Rule(OutOfMemoryError, "the memory is too small for {what}", "make a smaller image, or fewer at once")
TENSOR_TOO_LARGE = Rule(
    ParameterError,
    "a tensor of {count} elements is needed for {what}, and libraries for GPUs count to {limit}",
    "make a smaller image, or fewer at once",
)
UNET_CHANNELS = Rule(
    EngineError,
    "this engine's UNet takes {in_channels} channels and gives {out_channels}",
    "images are made with models that take 4, for InstructPix2Pix 8 or for inpainting 9 channels",
)
MASK_WITHOUT_IMAGE = Rule(
    ParameterError, "a mask was given without an image", "give the image whose masked part is to be regenerated"
)
STRENGTH_WITHOUT_IMAGE = Rule(
    ParameterError,
    "strength was given without image",
    "strength says how far image to image departs from the image; leave it out, or give image",
)
STRENGTH_WITH_MASK = Rule(
    ParameterError,
    "strength and mask do not go together",
    "RePaint regenerates the masked part completely; leave strength out, or take a model trained for inpainting",
)
INPAINTING_MODEL_WITHOUT_MASK = Rule(
    EngineError, "this engine's UNet takes {in_channels} channels (an inpainting model)", "give image and mask"
)
INSTRUCTION_WITHOUT_IMAGE = Rule(
    EngineError,
    "this engine's UNet takes {in_channels} channels (InstructPix2Pix)",
    "give image, which the prompt says how to change",
)
INSTRUCTION_WITH = Rule(
    ParameterError, "{name} was given, but this model changes an image as the prompt says", "leave {name} out"
)
IMAGE_GUIDANCE_SCALE_MODEL = Rule(
    ParameterError,
    "image_guidance_scale was given, but this model is not InstructPix2Pix",
    "leave image_guidance_scale out",
)
IMAGE_GUIDANCE_SCALE_RANGE = Rule(ParameterError, "image_guidance_scale is {value}", "give 1 or more")
IMAGE_GUIDANCE_SCALE_OFF = Rule(
    ParameterError,
    "image_guidance_scale was given, but guidance_scale = {value} turns guidance off",
    "leave image_guidance_scale out, or give a guidance_scale above 1",
)
REPAINT_WITH_INPAINTING_MODEL = Rule(
    ParameterError, "repaint was given, but this model was trained for inpainting", "leave repaint out"
)
REPAINT_WITHOUT_MASK = Rule(ParameterError, "repaint was given without mask", "leave repaint out, or give mask")
REPAINT_TYPE = Rule(ParameterError, "repaint is {value}", "give ebca.RePaint(jump_length=..., jump_count=...)")
NO_VAE_TO_ENCODE = Rule(
    EngineError, "this engine directory has no VAE to encode an image with", "export a whole checkpoint"
)
NO_VAE_TO_DECODE = Rule(EngineError, "this engine directory has no VAE", "ask for output='latents'")
NO_VAE_FOR_IMAGE = Rule(EngineError, "'{path}' has no VAE", "pass latents instead of an image")
LATENTS_CHANNELS = Rule(ParameterError, "latents have {count} channels, the VAE has {expected}", "give as many")
REQUEST_PART = Rule(ParameterError, "{what} is of type {kind}", "give ebca.{expected}")
OUTPUT = Rule(ParameterError, "output is '{value}'", "choose 'pil', 'np' or 'latents'")
SESSION_CLOSED = Rule(ParameterError, "this session is closed", "open another with engine.session()")
ENGINE_CLOSED = Rule(
    ParameterError, "this engine is closed", "open it again with ebca.load, and close it after its sessions"
)
SESSION_BUSY = Rule(
    ParameterError, "this session is in another call", "use one session per thread, and none from callbacks"
)
STRENGTH_RANGE = Rule(
    ParameterError, "strength is {value}", "give a number above 0 (keep the image) and up to 1 (regenerate all of it)"
)
STRENGTH_LEAVES_NO_STEP = Rule(
    ParameterError, "strength {value} of {count} steps leaves no step to run", "raise either"
)
SCHEDULER_UNKNOWN = Rule(ParameterError, "scheduler '{value}' is not in this engine", "available: {choices}")
SCHEDULER_LEFT_OUT = Rule(
    ParameterError, "scheduler '{value}' was left out of this engine: {reason}", "available: {choices}"
)
SCHEDULER_WITH_REPAINT = Rule(
    ParameterError, "scheduler '{value}' does not apply: RePaint has steps of its own", "leave it out"
)
SCHEDULER_STARTS_AT_FIRST_STEP = Rule(
    ParameterError,
    "scheduler {scheduler} looks back over several steps and cannot start at an intermediate timestep",
    "use ddim or euler, or strength 1",
)
STEPS_BELOW_ONE = Rule(ParameterError, "steps is {value}", "give a whole number of at least 1")
STEPS_BELOW_MINIMUM = Rule(ParameterError, "steps is {value}", "{scheduler} needs at least {minimum}")
STEPS_ABOVE_TRAINING = Rule(
    ParameterError,
    "steps is {value}, and {scheduler} has {timesteps} timesteps to step through",
    "give 1 to {timesteps}",
)
STEPS_NOT_STORED = Rule(
    ParameterError,
    "{scheduler} with {count} steps is not in this engine (the nearest stored count is {nearest})",
    "use that, or export again with --scheduler-steps {count}",
)
NO_STEPS_STORED = Rule(
    ParameterError,
    "{scheduler} with {count} steps is not in this engine (no step count is stored)",
    "export again with --scheduler-steps {count}",
)
ETA_RANGE = Rule(ParameterError, "eta is {value}", "give a number from 0 to 1")
REPAINT_STEPS = Rule(ParameterError, "steps is {value}", "RePaint takes 1 to {limit}")
REPAINT_MOVES = Rule(ParameterError, "jump_count is {value}, which makes more than {limit} moves", "give a smaller one")
NOISE_PREDICTION = Rule(
    ParameterError, "{what} needs a model that predicts noise, and this one does not", "use another model"
)
INVERSION_WITH_INPAINTING_MODEL = Rule(
    EngineError,
    "this engine is an inpainting model or another that sees an image",
    "inversion needs one that takes the latents alone",
)
SHIFTS_TOO_FEW = Rule(ParameterError, "NoiseRegularization has {count} shifts, which are too few", "give a seed")
SEED_COUNT = Rule(
    ParameterError,
    "seed has {count} values for a batch of {batch}",
    "give one, or one each; Engine.generate makes any number, as does Engine.session(batch={count})",
)
SEED_RANGE = Rule(ParameterError, "seed is {value}", "give a number from -2^63 to 2^64 - 1")
LATENTS_SHAPE = Rule(ParameterError, "latents have shape {shape}, this session needs {expected}", "give that shape")
LATENTS_NOT_FINITE = Rule(ParameterError, "latents have values that are not finite", "give finite numbers")
MASK_EMPTY = Rule(
    ParameterError,
    "{which} is empty: no pixel is white, so nothing would be regenerated",
    "paint the part to regenerate white",
)
MASK_TOO_SMALL = Rule(
    ParameterError,
    "the white part of the mask is too small: it covers the top left pixel of no {downscale} x {downscale} block",
    "enlarge it",
)
MASK_STRETCHED = Rule(
    EbcaError,
    "the mask has {mask_width} x {mask_height} pixels, the image {image_width} x {image_height}",
    "the mask is stretched to fit",
)
IMAGE_TRANSPARENT = Rule(EbcaError, "{name} has transparent pixels", "they are composited on white")
MASK_COLOURS_AND_TRANSPARENCY = Rule(
    EbcaError,
    "{name} has several colours and transparency",
    "its colours are used: white is regenerated; for transparency, fill it with one colour",
)
PROMPT_OR_EMBEDS = Rule(
    ParameterError, "{name} has both texts and embeddings, or neither", "give either a prompt or prompt_embeds"
)
PROMPT_TYPE = Rule(ParameterError, "{name} is {value}", "give a text, or one per image")
PROMPT_COUNT = Rule(
    ParameterError,
    "{name} has {count} texts for a batch of {batch}",
    "give one, or one each; Engine.generate makes any number, as does Engine.session(batch={count})",
)
PROMPT_TRUNCATED = Rule(EbcaError, "the {name} is longer than {limit} tokens", "dropped: '{dropped}'")
PROMPT_BRACKET_OPEN = Rule(
    ParameterError,
    "'{sign}' at character {position} of a prompt is not closed: '{near}'",
    "close it, write \\{sign} for text, or set prompt_weighting=False (ebca-run: --no-prompt-weighting)",
)
PROMPT_BRACKET_CLOSED = Rule(
    ParameterError,
    "'{sign}' at character {position} of a prompt closes nothing: '{near}'",
    "remove it, write \\{sign} for text, or set prompt_weighting=False (ebca-run: --no-prompt-weighting)",
)
PROMPT_EDITING = Rule(
    ParameterError,
    "'{found}' in a prompt would change it while the image is made, which is not supported",
    "write (word:1.3) for a weight, \\[ for text, or set prompt_weighting=False (ebca-run: --no-prompt-weighting)",
)
PROMPT_WEIGHT = Rule(
    ParameterError,
    "'{words}' in a prompt has the weight {value}",
    "give -{limit} to {limit}, write \\( for text, or set prompt_weighting=False (ebca-run: --no-prompt-weighting)",
)
PROMPT_CHUNKS = Rule(
    ParameterError,
    "a prompt has {count} chunks of up to {room} tokens",
    "shorten it to {limit} chunks, or turn long_prompts off",
)
PROMPT_WEIGHTS_CANCEL = Rule(
    ParameterError, "the weights of the {name} make the mean of its embeddings zero", "change one of them"
)
LONG_PROMPT_PLANS = Rule(
    EngineError,
    "the prompts need {tokens} tokens, and the plans for {backend} are built for {built}",
    "shorten them, set long_prompts=False (ebca-run: --no-long-prompts), or use onnxruntime-cuda",
)
CLIP_SKIP_RANGE = Rule(ParameterError, "clip_skip is {value}", "the text encoder has {layers} layers: give 0 to {last}")
CLIP_SKIP_ENGINE = Rule(
    EngineError,
    "this engine directory has only the last layer of its text encoder, so there is no clip_skip",
    "export it again",
)
CLIP_SKIP_PLANS = Rule(
    EngineError,
    "the plans for {backend} have only the last layer of the text encoder, so there is no clip_skip",
    "leave it out, or use another backend",
)
NOT_NUMBERS = Rule(ParameterError, "{name} is not an array of numbers", "give {expected}")
EMBEDS_SHAPE = Rule(ParameterError, "{name} has shape {shape}", "give [{batch}, tokens, {width}]")
EMBEDS_NOT_FINITE = Rule(ParameterError, "{name} has values that are not finite", "give finite numbers")
EMBEDS_DIFFER = Rule(ParameterError, "{name} has shape {shape}, prompt_embeds has {expected}", "give the same shape")
GUIDANCE_NEEDS_NEGATIVE = Rule(
    ParameterError, "guidance needs negative_prompt_embeds beside prompt_embeds", "give them, or set guidance_scale=1"
)
UNET_ONLY = Rule(EngineError, "'{path}' holds a UNet only", "pass prompt_embeds instead of a prompt")
NO_TEXT_ENCODER = Rule(EngineError, "'{path}' has no text encoder", "pass prompt_embeds instead of a prompt")
ADDED_ENGINE = Rule(
    ParameterError,
    "{name} is for models that take pooled embeddings and sizes, as Stable Diffusion XL does, and this one takes none",
    "leave it out",
)
SECOND_PROMPT_WITH_EMBEDS = Rule(
    ParameterError, "{name} and {other} do not go together", "leave one out: the embeddings are of both text encoders"
)
POOLED_NEEDED = Rule(
    ParameterError,
    "{name} needs {other} beside it",
    "give the pooled embeddings of the same text, [1 or one per image, {width}]",
)
POOLED_ALONE = Rule(ParameterError, "{name} is given without {other}", "give both, or a text")
POOLED_SHAPE = Rule(ParameterError, "{name} has shape {shape}", "give [{batch}, {width}]")
SIZE_CONDITION = Rule(ParameterError, "{name} is {value}", "give two whole numbers from 0 to {limit}: {meaning}")
NEGATIVE_SIZES = Rule(
    ParameterError,
    "{name} needs {other} beside it",
    "give negative_original_size and negative_target_size together, or leave all sizes of the negative prompt out",
)
TOKEN_FACTOR = Rule(ParameterError, "the factor of '{key}' in token_weights is {value}", "give a finite number")
TOKEN_WEIGHTS_TYPE = Rule(
    ParameterError, "token_weights is {value}", "give a dict of words or positions and their factors, such as {example}"
)
TOKEN_POSITION = Rule(ParameterError, "token_weights names position {position}", "there are positions 0 to {last}")
TOKEN_WORD_WITHOUT_PROMPT = Rule(
    ParameterError, "token_weights names the word '{word}'", "beside prompt_embeds, give its position"
)
TOKEN_WORD_OF_SEVERAL_PROMPTS = Rule(
    ParameterError,
    "token_weights names the word '{word}', which needs one prompt for all images",
    "give its position instead",
)
WORD_WITHOUT_TOKENS = Rule(ParameterError, "the word {word} has no tokens", "give a word or phrase of the prompt")
WORD_NOT_IN_PROMPT = Rule(ParameterError, "the word {word} is not in the prompt", "the prompt's tokens are: {tokens}")
WORD_BEYOND_LIMIT = Rule(
    ParameterError,
    "the word {word} is only beyond the first {limit} tokens of the prompt, and later tokens are not used",
    "the prompt's tokens are: {tokens}",
)
SUBJECTS_TYPE = Rule(
    ParameterError, "subjects is {value}", "give 'auto', a list of phrases of the prompt, or one such list per image"
)
SUBJECTS_ENGINE = Rule(EngineError, "this engine directory has no layers for subjects", "export it again")
SUBJECTS_NEED_TEXT = Rule(
    ParameterError, "subjects are words of the prompt, and prompt_embeds has none", "give the prompt as a text"
)
SUBJECT_LISTS = Rule(
    ParameterError,
    "subjects has {count} lists for a batch of {batch}",
    "give one list of phrases for all images, or one list each",
)
SUBJECT_TYPE = Rule(ParameterError, "{field} names {value} as a subject", "give a text, such as {example}")
SUBJECT_EMPTY = Rule(ParameterError, "{field} has an empty phrase", "give words of the prompt")
SUBJECTS_TOO_MANY = Rule(
    ParameterError, "the prompt '{prompt}' has {count} subjects, and the limit is {limit}", "name those that matter"
)
SUBJECT_NOT_IN_PROMPT = Rule(
    ParameterError, "the subject '{subject}' is not in the prompt '{prompt}'", "give words as they stand in it"
)
SUBJECT_MISSPELLED = Rule(
    ParameterError, "the subject '{subject}' is not in the prompt '{prompt}'", "did you mean '{near}'?"
)
SUBJECT_BEYOND_LIMIT = Rule(
    ParameterError,
    "the subject '{subject}' is only beyond the first {limit} tokens of the prompt, and later tokens are not used",
    "shorten the prompt before it, or leave the subject out",
)
SUBJECT_REPEATED = Rule(
    ParameterError,
    "the subject '{subject}' is named more often ({count}) than it stands in the prompt '{prompt}' ({found})",
    "name each thing once",
)
SUBJECTS_OVERLAP = Rule(
    ParameterError,
    "the subjects '{subject}' and '{other}' share words of the prompt '{prompt}'",
    "name each thing by words of its own",
)
SUBJECT_STRENGTH = Rule(ParameterError, "{name} is {value} at evaluation {index}", "give numbers from 0 to {limit}")
SUBJECT_ALONE = Rule(
    EbcaError,
    "'{subject}' is the only subject of the prompt '{prompt}'",
    "nothing is done for a single subject without a region",
)
SUBJECT_MAP_SIZE = Rule(
    ParameterError,
    "the map on which subjects are placed has {height} x {width} positions",
    "make a smaller image: the limit is {limit} positions",
)
REGIONS_TYPE = Rule(
    ParameterError, "regions is {value}", "give a dict of phrases and their masks or boxes, such as {example}"
)
REGION_BOX = Rule(
    ParameterError,
    "the region of '{subject}' is the box {value}",
    "give left, top, right and bottom as shares of the image from 0 to 1, with left < right and top < bottom",
)
REGION_ASPECT = Rule(
    ParameterError,
    "the region of '{subject}' is {width} x {height} pixels, the image {image_width} x {image_height}",
    "give a mask of the image's aspect ratio",
)
REGION_EMPTY = Rule(
    ParameterError, "the region of '{subject}' is empty: no pixel is white", "paint the place of the subject white"
)
EDITS_TOO_MANY = Rule(
    ParameterError,
    "{count} editing prompts are more than the {limit} that this engine was built for",
    "use fewer, or export it again for more",
)
EDITS_TYPE = Rule(ParameterError, "edits is {value}", "give a list of ebca.Edit")
EDIT_TYPE = Rule(ParameterError, "edits holds {value}", "give ebca.Edit(prompt, direction=1, alpha=...)")
EDIT_DIRECTION = Rule(
    ParameterError, "{where} has direction {value}", "give 1 (conjunction: add) or 0 (negation: take away)"
)
EDIT_ALPHA_NEGATIVE = Rule(
    ParameterError, "alpha of {where} is negative", "give direction=0 with a positive alpha instead"
)
EDIT_ALPHAS_CANCEL = Rule(
    ParameterError,
    "the alphas cancel at evaluation {index}: 1 {terms} is about 0, and the output is divided by it",
    "change an alpha",
)
SCHEDULE_NUMBER = Rule(ParameterError, "{name}: {field} is {value}", "give a finite number")
SCHEDULE_TAU = Rule(ParameterError, "{name}: tau is {value}", "give a share of the steps, from 0 to 1")
SCHEDULE_TEXT = Rule(
    ParameterError,
    "'{value}' is not a schedule",
    "write constant:VALUE, step:VALUE:TAU, reverse_step:VALUE:TAU, linear:VALUE:RATIO or exponential:VALUE:RATIO",
)
SCHEDULE_TYPE = Rule(
    ParameterError,
    "{name} is {value}",
    "give a number, one number per evaluation, or a Schedule such as Schedule.step(0.01, 0.2)",
)
SCHEDULE_LENGTH = Rule(
    ParameterError,
    "{name} has {count} values, but {scheduler} with {steps} steps makes {evaluations} evaluations",
    "give one value per evaluation, a single number, or a Schedule",
)
SCHEDULE_VALUE = Rule(
    ParameterError, "{name}: value {value} at evaluation {index} is not a finite float32 number", "give finite numbers"
)
GAMMA_NOT_FINITE = Rule(ParameterError, "{name} has values that are not finite", "give finite numbers")
CANCELLED = Rule(CancelledError, "cancelled after {count} of {total} evaluations")
RESULT_NOT_FINITE = Rule(
    NumericalError,
    "the result at timestep {timestep} is not finite, first in {culprit}",
    "lower gamma_attn and gamma_norm, or check the checkpoint",
)
RESULT_OF_BAD_INPUT = Rule(
    NumericalError,
    "the result at timestep {timestep} is not finite, first in {culprit}: the {what} given to it had such values",
    "give finite numbers",
)
LATENTS_RAN_AWAY = Rule(
    NumericalError,
    "the latents after timestep {timestep} are not finite, though the noise prediction is",
    "lower guidance_scale",
)
IMAGE_NOT_FINITE = Rule(
    NumericalError,
    "the image is not finite, first in the VAE decoder",
    "lower gamma_attn and gamma_norm, or check the checkpoint",
)
