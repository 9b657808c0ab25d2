"""The things that an English prompt names: noun phrases, found with lists of words and without a model.

It is meant for the sentences that prompts are made of: things with their adjectives, joined by "and", by commas, and by
prepositions and verbs between them. Where it is not sure, it finds nothing; then the subjects can be named by hand.

    a red circle and a blue square                    red circle | blue square
    a photo of an astronaut riding a horse            astronaut | horse
    a cat and a dog playing in the park, 4k           cat | dog
    portrait of a woman, highly detailed              nothing: fewer than two

What it does not do:

- It knows English only, and no grammar: verbs are words that end in "-ing" and some others, see `subject_words`.
- "in", "at", "from" and others say where everything is, so what follows them is no subject: a cat in a hat.
- Parts of a thing ("blue eyes") and scenery ("on the beach") are no subjects. The lists of them are short.
- After a comma, words without an article are a subject if they begin with a common adjective or end a list with "and".
- Several of a kind are one subject: two cats. A thing that "the" names again is the first one.
- Brackets and quotation marks end a phrase. The text has no weights such as "(red:1.3)": it is the plain text of
  `ebca.runtime.text.weighted`.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from ebca.runtime.text import subject_words as known
from ebca.runtime.text.subject_words import Link

# Words with hyphens and apostrophes in them, and accents that are characters of their own; or one other character.
_TOKEN = re.compile(r"[\w\u0300-\u036f]+(?:['’-][\w\u0300-\u036f]+)*|\n|\S")
_JOINING_SIGNS = ("&", "+")
# A longer one is a sentence that was not understood.
_LONGEST_PHRASE = 6
_LONGEST_BARE = 4
# Words beyond this do not change what a segment is.
_LONGEST_SEGMENT = 12


class Span(NamedTuple):
    """Characters `start` to `end` of a prompt, the latter excluded."""

    start: int
    end: int


class _Word(NamedTuple):
    text: str  # in lower case
    span: Span


class _Segment(NamedTuple):
    """Words between two links, and what the link before them says."""

    link: Link
    words: tuple[_Word, ...]
    behind: bool = False  # "in the background" follows


_Words = Sequence[_Word]


def find_subjects(prompt: str) -> list[Span]:
    """The phrases of a prompt that name things, without articles and numbers, in order; they do not overlap.

    Returns none if there are fewer than two, since then no subject can take another's place.
    """
    found: list[Span] = []
    names: set[str] = set()
    for segment in _naming(_clauses(prompt)):
        words = _thing(segment)
        if not words:
            continue
        name = " ".join(word.text for word in words)
        if name in names and segment.words[0].text == "the":
            continue
        names.add(name)
        found.append(Span(words[0].span.start, words[-1].span.end))
    return found if len(found) > 1 else []


def _clauses(prompt: str) -> list[_Words]:
    """The words between punctuation, without what says that the image is an image."""
    clauses: list[list[_Word]] = [[]]
    for match in _TOKEN.finditer(prompt):
        text = match[0].lower()
        if text[0].isalnum() or text in _JOINING_SIGNS:
            clauses[-1].append(_Word(text, Span(*match.span())))
        else:
            clauses.append([])
    shorter = [_without_style(clause) for clause in clauses]
    return [clause for clause in shorter if clause]


def _without_style(words: _Words) -> _Words:
    """Without "a photo of", "a black and white drawing of" and the like before it."""
    begin = 0
    while (end := _style_end(words[begin : begin + _LONGEST_SEGMENT])) > 0:
        begin += end
    return words[begin:]


def _style_end(words: _Words) -> int:
    """How many words at the beginning say that the image is an image."""
    for at, (word, following) in enumerate(pairwise(words)):
        close_up = word.text == "up" and at > 0 and words[at - 1].text == "close"
        if (word.text in known.STYLES or close_up) and following.text in known.OF:
            return at + 2
        if _link(words, at)[1] and word.text != "up":
            break
    return 0


def _naming(clauses: Sequence[_Words]) -> list[_Segment]:
    """The segments of those clauses that name things."""
    kept: list[list[_Segment]] = []
    # Whether a clause after this one ends a list: a cat, dog and bird.
    in_list = False
    for index in reversed(range(len(clauses))):
        words, segments = clauses[index], _segments(clauses[index])
        linked = len(segments) > 1
        joined = linked and segments[1].link is Link.JOIN
        if index == 0:
            if not linked and len(clauses) > 1 and _is_modifier(words):
                continue
        elif _is_modifier(words):
            in_list = False
            continue
        elif not _has_determiner(words) and segments[0].words:
            listed = in_list or joined or words[0].text in known.ADJECTIVES
            if not listed or len(segments[0].words) > _LONGEST_BARE:
                in_list = False
                continue
            segments[0] = segments[0]._replace(link=Link.BARE)
            in_list = True
        in_list = in_list or joined
        kept.append(segments)
    return [segment for segments in reversed(kept) for segment in _resolved(segments)]


def _is_modifier(words: _Words) -> bool:
    """Whether a clause describes the image as a whole: "highly detailed", "an oil painting"."""
    first = _segments(words)[0].words
    if _has_determiner(words):
        return bool(first) and first[-1].text in known.MODIFIERS
    return any(word.text in known.MODIFIERS for word in first)


def _segments(words: _Words) -> list[_Segment]:
    """Cut a clause at its links. The first segment is empty if it begins with one."""
    segments: list[_Segment] = []
    link, begin, at = Link.THING, 0, 0
    while at < len(words):
        following, length = _link(words, at, begin)
        if not length:
            at += 1
            continue
        behind = [word.text for word in words[at : at + 3]] in (["in", "the", "background"], ["in", "the", "distance"])
        segments.append(_Segment(link, tuple(words[begin:at]), behind))
        link, at = following, at + length
        begin = at
    return [*segments, _Segment(link, tuple(words[begin:]))]


def _resolved(segments: Sequence[_Segment]) -> Iterator[_Segment]:
    """With what "and" stands for: after "in red and blue" no thing either, but one after "in red and a dog"."""
    before = Link.THING
    for segment in segments:
        link = segment.link
        if link is Link.JOIN:
            link = Link.THING if before is Link.NONE and _has_determiner(segment.words) else before
        before = link
        yield segment._replace(link=link)


def _link(words: _Words, at: int, begin: int = 0) -> tuple[Link, int]:
    """The link at a position, and its length in words: 0 if there is none.

    Args:
        words: of a clause.
        at: the position.
        begin: where the segment before it begins.
    """
    before = words[max(begin, at - _LONGEST_SEGMENT) : at]
    after = words[at + 1].text if at + 1 < len(words) else ""
    for length in range(min(known.LONGEST_LINK, len(words) - at), 0, -1):
        found = known.LINKS.get(" ".join(word.text for word in words[at : at + length]))
        if found is Link.JOIN and length == 1 and _only_adjectives(before) and after not in known.DETERMINERS:
            # A black and white cat.
            return found, 0
        if found is not None:
            return found, length
    if words[at].text == "by":
        # By a river, but not by an artist.
        return (Link.THING if after in known.DETERMINERS else Link.NONE), 1
    return Link.THING, int(_is_verb(words, at, before, after))


def _is_verb(words: _Words, at: int, before: _Words, after: str) -> bool:
    """Whether a word is "riding" as in "riding a horse", not as in "a riding school"."""
    text = words[at].text
    if not text.endswith("ing") or text in known.ING_NOUNS or len(text) < 5:
        return False
    if any(word.text not in known.ADJECTIVES | known.DETERMINERS for word in before):
        return True
    return not after or after in known.DETERMINERS or after == "by" or _link(words, at + 1)[1] > 0


def _thing(segment: _Segment) -> _Words:
    """The words of a segment that name a thing, without articles and numbers; none if it names no thing."""
    words = segment.words
    determined = _has_determiner(words)
    while words and (
        _has_determiner(words) or (len(words) > 1 and words[0].text in known.QUANTITIES and words[1].text == "of")
    ):
        words = words[1 + (words[0].text in known.QUANTITIES) :]
    while words and words[-1].text in known.TRAILING | known.DETERMINERS:
        words = words[:-1]
    if not words or len(words) > _LONGEST_PHRASE or segment.link is Link.NONE or (segment.behind and not determined):
        return ()
    if _only_adjectives(words) and not (determined and len(words) == 1 and words[0].text in known.NOUNS_TOO):
        return ()
    head = next((words[at - 1].text for at, word in enumerate(words) if at and word.text == "of"), words[-1].text)
    if head in known.PLACES or words[0].text in known.PLACES - known.ADJECTIVES:
        return ()
    scenery = segment.link in (Link.ON, Link.BARE) and head in known.SCENES
    part = segment.link in (Link.WITH, Link.BARE) and head in known.PARTS
    return () if scenery or part or not head[0].isalpha() else words


def _only_adjectives(words: _Words) -> bool:
    rest = [word.text for word in words if word.text not in known.DETERMINERS and word.text not in ("and", "&")]
    return bool(rest) and known.ADJECTIVES.issuperset(rest)


def _has_determiner(words: _Words) -> bool:
    return bool(words) and (words[0].text in known.DETERMINERS or words[0].text.isdigit())
