"""The subjects of a prompt: checks them, finds their tokens, and puts their regions on the map of the UNet."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from ebca.runtime.components import Components
from ebca.runtime.conditioning.prompts import Conditioning
from ebca.runtime.conditioning.schedules import Gamma
from ebca.runtime.conditioning.schedules import resolve as resolve_schedule
from ebca.runtime.images.regions import Region, check_box, coverage, is_box
from ebca.runtime.sampling.subjects import SubjectInputs
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown
from ebca.runtime.text.subjects import find_subjects
from ebca.runtime.text.tokenizer import Tokenizer
from ebca.runtime.validation import finite, texts_for_images, warn

AUTO = "auto"
_WINDOW = (0.01, 10.0)
# How much of a prompt a message shows, and how many of its words are compared with one that is not in it.
_SHOWN = 100
_COMPARED = 200


@dataclass(frozen=True, repr=False)
class Subjects(Shown):
    """Which things of the prompt get a place of their own, and how strongly.

    Attributes:
        subjects: "auto" finds them in the prompt, and does nothing for a prompt with fewer than two; or phrases of the
            prompt; or, for several prompts, one list of phrases per image. None: off.
        regions: maps phrases to where they belong: a mask (white there; a file, a PIL image or an array) with the
            aspect ratio of the images, or a box (left, top, right, bottom) in shares of width and height. A phrase with
            a region is a subject of every image whose prompt has it, even if `subjects` does not name it.
        subject_exclusion: how strongly a subject is kept inside its place, 0 to 1000: a number, a Schedule, or one
            value per evaluation (RePaint: per step).
        subject_balance: how strongly a subject is supported that attends less than the strongest; likewise.
        subject_window: size of a place, as standard deviation in sides of the smaller side, 0.01 to 10. Subjects with
            a region do not use it.
    """

    subjects: Literal["auto"] | Sequence[str] | Sequence[Sequence[str]] | None = None
    regions: Mapping[str, Region] | None = None
    subject_exclusion: Gamma = rules.GENERATE.subject_exclusion
    subject_balance: Gamma = rules.GENERATE.subject_balance
    subject_window: float = rules.GENERATE.subject_window

    @property
    def on(self) -> bool:
        """Whether there is anything to find in a prompt."""
        return bool(self.subjects or self.regions)


@dataclass(frozen=True)
class Resolved:
    """The subjects that were found.

    Attributes:
        phrases: of each image; none where nothing is done.
        inputs: for the sampler; None if nothing is done for any image.
    """

    phrases: tuple[tuple[str, ...], ...]
    inputs: SubjectInputs | None

    @property
    def recorded(self) -> list[Any]:
        """The field `subjects` of a request that finds the same: phrases of all images, or a list per image."""
        lists = [list(each) for each in self.phrases]
        return lists[0] if all(each == lists[0] for each in lists) else lists


class _Found(NamedTuple):
    """A subject of one image."""

    phrase: str
    positions: list[int]  # of its tokens
    region: Region | None


def check(subjects: Subjects, conditioning: Conditioning, batch: int) -> None:
    """Check everything that needs no prompt's tokens, no file and no schedule.

    Raises:
        ParameterError: values of wrong types, a wrong number of lists, an empty phrase, a box that is none, a window
            out of range, or subjects of a prompt that was given as embeddings.
    """
    if subjects.subjects is not None and subjects.subjects != AUTO:
        _lists(subjects.subjects, batch)
    regions = subjects.regions
    if regions is not None and not isinstance(regions, Mapping):
        raise rules.REGIONS_TYPE.error(value=repr(regions), example="{'red circle': (0, 0, 0.5, 1)}")
    for phrase, region in (regions or {}).items():
        _check_phrase("regions", phrase)
        if is_box(region):
            check_box(phrase, region)
    window = finite("subject_window", subjects.subject_window)
    if not _WINDOW[0] <= window <= _WINDOW[1]:
        raise rules.NUMBER_RANGE.error(field="subject_window", value=window, low=_WINDOW[0], high=_WINDOW[1])
    if subjects.on and conditioning.prompt is None:
        raise rules.SUBJECTS_NEED_TEXT.error()


def strengths(subjects: Subjects, steps: int, evaluations: int, scheduler: str) -> np.ndarray:
    """lambda and mu of each evaluation, [evaluations,2] float32.

    Raises:
        ParameterError: a schedule that does not fit, or a value outside 0 to 1000.
    """
    columns = []
    for name in ("subject_exclusion", "subject_balance"):
        values = resolve_schedule(getattr(subjects, name), steps, evaluations, name, scheduler)
        outside = np.flatnonzero((values < 0) | (values > rules.MAX_SUBJECT_STRENGTH))
        if outside.size:
            index, limit = int(outside[0]), rules.MAX_SUBJECT_STRENGTH
            raise rules.SUBJECT_STRENGTH.error(name=name, value=float(values[index]), index=index, limit=limit)
        columns.append(values)
    return np.stack(columns, 1)


def of_images(
    subjects: Subjects,
    conditioning: Conditioning,
    components: Components,
    strengths: np.ndarray,
    latent_shape: tuple[int, int, int, int],
    size: tuple[int, int],
) -> Resolved | None:
    """`resolve` for the prompts of a request, whose subjects were checked; None if they are off.

    Args:
        subjects, conditioning: of the request.
        components: of an engine whose UNet has layers for subjects.
        strengths: as `strengths` returns them.
        latent_shape: [n,C,h,w] of the latents.
        size: (height, width) of the images in pixels.
    """
    if not subjects.on:
        return None
    unet, (batch, _, height, width) = components.manifest.unet, latent_shape
    assert unet.subject_layers is not None and conditioning.prompt is not None
    grid = unet.layers[unet.subject_layers.biased[0]].size({"height": height, "width": width})
    tokenizer = components.tokenizer.reading(conditioning.reading)
    return resolve(subjects, conditioning.prompt, tokenizer, strengths, batch=batch, grid=grid, size=size)


def resolve(
    subjects: Subjects,
    prompt: str | Sequence[str],
    tokenizer: Tokenizer,
    strengths: np.ndarray,
    *,
    batch: int,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> Resolved:
    """Find the subjects of every image. A subject that is alone and has no region is left out, with a warning if it was
    named.

    Args:
        subjects: what was asked for, checked, and on.
        prompt: one text for all images, or one per image.
        tokenizer: of the engine, with the prompts' way of reading.
        strengths: as `strengths` returns them.
        batch: number of images n.
        grid: (h, w) of the map on which subjects are placed.
        size: (height, width) of the images in pixels.

    Raises:
        ParameterError: subjects that are not in the prompt, or not within its length limit, that share words, or are
            too many; a region that cannot be read, or has another shape than the images; a map that is too large.
    """
    if grid[0] * grid[1] > rules.MAX_SUBJECT_POSITIONS:
        limit = rules.MAX_SUBJECT_POSITIONS
        raise rules.SUBJECT_MAP_SIZE.error(height=grid[0], width=grid[1], limit=limit)
    texts = texts_for_images("prompt", prompt, batch)
    lists = None if subjects.subjects in (None, AUTO) else _lists(subjects.subjects, batch)
    seen: dict[tuple[str, tuple[str, ...]], list[_Found]] = {}
    images = []
    for index, text in enumerate(texts):
        named = lists[index] if lists is not None else ()
        if (text, named) not in seen:
            seen[text, named] = _of_image(subjects, text, named, tokenizer)
        images.append(seen[text, named])
    _check_regions_used(subjects.regions or {}, texts, tokenizer)
    phrases = tuple(tuple(one.phrase for one in image) for image in images)
    tokens = tokenizer.max_length * max(tokenizer.rows(text) for text in dict.fromkeys(texts))
    inputs = _inputs(images, subjects.subject_window, tokens, strengths, grid, size)
    return Resolved(phrases, inputs if any(images) else None)


def _lists(value: Any, batch: int) -> list[tuple[str, ...]]:
    """The phrases of each image. Raises ParameterError."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise rules.SUBJECTS_TYPE.error(value=repr(value))
    nested = bool(value) and all(isinstance(one, Sequence) and not isinstance(one, str | bytes) for one in value)
    if nested and len(value) != batch:
        raise rules.SUBJECT_LISTS.error(count=len(value), batch=batch)
    lists = [tuple(one) for one in value] if nested else [tuple(value)] * batch
    for phrase in (phrase for each in lists for phrase in each):
        _check_phrase("subjects", phrase)
    return lists


def _check_phrase(field: str, phrase: Any) -> None:
    if not isinstance(phrase, str):
        raise rules.SUBJECT_TYPE.error(field=field, value=repr(phrase), example="'red circle'")
    if not phrase.strip():
        raise rules.SUBJECT_EMPTY.error(field=field)


def _of_image(subjects: Subjects, text: str, named: Sequence[str], tokenizer: Tokenizer) -> list[_Found]:
    regions = {_key(phrase): region for phrase, region in (subjects.regions or {}).items()}
    automatic = subjects.subjects == AUTO
    phrases = _automatic(text, (), tokenizer) if automatic else list(named)
    known = {_key(phrase) for phrase in phrases}
    more = [phrase for phrase in subjects.regions or {} if _key(phrase) not in known]
    more = [phrase for phrase in more if tokenizer.occurrences(text, phrase)[0]]
    if automatic and more:
        phrases = _automatic(text, more, tokenizer)
    phrases += more
    if len(phrases) > rules.MAX_SUBJECTS:
        shown = rules.shortened(text, _SHOWN)
        raise rules.SUBJECTS_TOO_MANY.error(prompt=shown, count=len(phrases), limit=rules.MAX_SUBJECTS)
    places = _places(phrases, text, tokenizer)
    # The first of two equal phrases has the region.
    found = [
        _Found(phrase, place, regions.pop(_key(phrase), None)) for phrase, place in zip(phrases, places, strict=True)
    ]
    if len(found) == 1 and found[0].region is None:
        if not automatic:
            warn(rules.SUBJECT_ALONE.text(subject=found[0].phrase, prompt=rules.shortened(text, _SHOWN)))
        return []
    return found


def _automatic(text: str, by_hand: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """The phrases that the parser finds, as far as they have words of their own: within the length limit, and apart
    from those of `by_hand`."""
    taken = {token for place in _places(by_hand, text, tokenizer) for token in place}
    plain = tokenizer.plain(text)
    phrases = [plain[span.start : span.end] for span in find_subjects(plain)]
    occurrences = [tokenizer.occurrences(text, phrase)[0] for phrase in phrases]
    kept = []
    for index in _longest_first(occurrences):
        free = next((place for place in occurrences[index] if taken.isdisjoint(place)), None)
        if free is not None:
            kept.append(index)
            taken.update(free)
    return [phrases[index] for index in sorted(kept)]


def _places(phrases: Sequence[str], text: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Token positions of each phrase: its first occurrence that no other phrase uses. Longer phrases choose first, so
    that "cat" leaves "red cat" alone where it can.

    Raises:
        ParameterError: a phrase without such an occurrence.
    """
    occurrences = [_occurrences(phrase, text, tokenizer) for phrase in phrases]
    places: dict[int, list[int]] = {}
    for index in _longest_first(occurrences):
        users = {token: other for other, place in places.items() for token in place}
        free = next((place for place in occurrences[index] if users.keys().isdisjoint(place)), None)
        if free is None:
            _refuse_shared(phrases, index, {users[t] for t in occurrences[index][0] if t in users}, occurrences, text)
        else:
            places[index] = free
    return [places[index] for index in range(len(phrases))]


def _longest_first(occurrences: Sequence[list[list[int]]]) -> list[int]:
    """Indices of phrases with occurrences, those with the most tokens first, else in order."""
    present = [index for index, found in enumerate(occurrences) if found]
    return sorted(present, key=lambda index: -len(occurrences[index][0]))


def _occurrences(phrase: str, text: str, tokenizer: Tokenizer) -> list[list[int]]:
    """All that fit, at least one."""
    found, beyond = tokenizer.occurrences(text, phrase)
    if found:
        return found
    if beyond:
        raise rules.SUBJECT_BEYOND_LIMIT.error(subject=phrase, limit=tokenizer.max_length - 2)
    shown, near = rules.shortened(text, _SHOWN), _near(phrase, text)
    if near is not None:
        raise rules.SUBJECT_MISSPELLED.error(subject=phrase, prompt=shown, near=near)
    raise rules.SUBJECT_NOT_IN_PROMPT.error(subject=phrase, prompt=shown)


def _refuse_shared(
    phrases: Sequence[str], index: int, others: set[int], occurrences: Sequence[list[list[int]]], text: str
) -> NoReturn:
    """Raise the error about a phrase whose occurrences are all used."""
    phrase, shown = phrases[index], rules.shortened(text, _SHOWN)
    other = phrases[min(others)]
    if _key(other) == _key(phrase):
        count = sum(_key(one) == _key(phrase) for one in phrases)
        raise rules.SUBJECT_REPEATED.error(subject=phrase, count=count, prompt=shown, found=len(occurrences[index]))
    raise rules.SUBJECTS_OVERLAP.error(subject=other, other=phrase, prompt=shown)


def _near(phrase: str, text: str) -> str | None:
    """The words of a text that a phrase may stand for."""
    words = re.findall(r"\w+", text)[:_COMPARED]
    count = len(phrase.split())
    candidates = {" ".join(words[i : i + count]).lower(): " ".join(words[i : i + count]) for i in range(len(words))}
    close = difflib.get_close_matches(phrase.lower(), candidates, 1)
    return candidates[close[0]] if close else None


def _check_regions_used(regions: Mapping[str, Region], texts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raise ParameterError for a region whose phrase no prompt has."""
    for phrase in regions:
        if not any(tokenizer.occurrences(text, phrase)[0] for text in dict.fromkeys(texts)):
            _occurrences(phrase, texts[0], tokenizer)


def _inputs(
    images: Sequence[Sequence[_Found]],
    window: float,
    tokens: int,
    strengths: np.ndarray,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> SubjectInputs:
    counts = np.array([len(image) for image in images], np.int32)
    groups = max(int(counts.max()), 1)
    token_groups = np.full((len(images), tokens), -1, np.int32)
    regions = np.zeros((len(images), groups, *grid), np.float32)
    fixed = np.zeros((len(images), groups), bool)
    read: dict[str, np.ndarray] = {}
    for row, image in enumerate(images):
        _mark(token_groups[row], [one.positions for one in image])
        for group, one in enumerate(image):
            if one.region is not None:
                key = _key(one.phrase)
                if key not in read:
                    read[key] = coverage(one.phrase, one.region, size, grid)
                regions[row, group], fixed[row, group] = read[key], True
    return SubjectInputs(token_groups, counts, strengths, float(window), regions, fixed)


def _mark(token_groups: np.ndarray, places: Sequence[Sequence[int]]) -> None:
    """Write the group of each token, [T]: a subject has its words and, if no other subject does, the token after them.

    The text encoder is causal. What a phrase means is gathered in the token that follows it, a comma or the end, and in
    some models only this one attends to the right place.
    """
    for group, positions in enumerate(places):
        token_groups[positions] = group
    for group, positions in enumerate(places):
        after = max(positions) + 1
        if token_groups[after] < 0:
            token_groups[after] = group


def _key(phrase: str) -> str:
    """What is equal for phrases that have the same tokens."""
    return " ".join(phrase.casefold().split())
