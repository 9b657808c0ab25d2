"""The things that prompts name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebca.runtime.text import subject_words
from ebca.runtime.text.subjects import find_subjects

# Prompts as people write them, and the phrases that name things; none for fewer than two.
TABLE = """
a red circle and a blue square -> red circle | blue square
a red heart left of a cyan circle -> red heart | cyan circle
a red square, a green triangle and a blue circle -> red square | green triangle | blue circle
a cat and a dog playing in the park -> cat | dog
a turtle with a yellow bow -> turtle | yellow bow
a photo of an astronaut riding a horse -> astronaut | horse
portrait of a woman, highly detailed, 4k ->
a red circle ->
a cat ->
a cat and a frog -> cat | frog
a bird and a lion -> bird | lion
a yellow bowl and a blue cat -> yellow bowl | blue cat
a purple bench and a green apple -> purple bench | green apple
a monkey with a red hat -> monkey | red hat
a lion with a crown -> lion | crown
a castle next to a river -> castle | river
an oil painting of a lion and a lamb -> lion | lamb
a black and white photo of a cat and a dog -> cat | dog
a black and white cat and a brown dog -> black and white cat | brown dog
a red and blue bird next to a tree -> red and blue bird | tree
a red and a blue square ->
an apple and an orange -> apple | orange
two cats and a dog -> cats | dog
two cats ->
three red balloons and 2 kites -> red balloons | kites
cat and dog -> cat | dog
red circle, blue square, green star -> red circle | blue square | green star
cat, dog and bird -> cat | dog | bird
a cat, a dog, and a bird -> cat | dog | bird
a cat, dog, and bird, digital art -> cat | dog | bird
a cat & a dog -> cat | dog
a cat + a dog -> cat | dog
a cat plus a dog -> cat | dog
a cat on a sofa -> cat | sofa
a dog on the beach ->
a cat and a dog on the beach at sunset -> cat | dog
a bear wearing a red scarf -> bear | red scarf
a man holding a green umbrella -> man | green umbrella
a man in a blue suit and a woman in a red dress -> man | woman
a girl with long hair and blue eyes ->
a cup of coffee and a plate of cookies -> cup of coffee | plate of cookies
a cup of coffee next to a laptop, white background -> cup of coffee | laptop
a group of penguins and a polar bear -> penguins | polar bear
a sleeping cat and a running dog -> sleeping cat | running dog
a big sleeping cat under a small table -> big sleeping cat | small table
a cat on the left and a dog on the right -> cat | dog
a cat to the left of a dog -> cat | dog
a red ball on top of a blue cube -> red ball | blue cube
a blue bird above a green frog -> blue bird | green frog
an elephant between a giraffe and a zebra -> elephant | giraffe | zebra
a cat without a hat ->
a cat chasing a mouse -> cat | mouse
a knight fighting a dragon, in the style of Rembrandt -> knight | dragon
a robot by Greg Rutkowski ->
a house by a lake -> house | lake
a dog and a cat by Van Gogh, trending on artstation -> dog | cat
masterpiece, best quality, a fox and a rabbit -> fox | rabbit
masterpiece, best quality, 1girl, solo, long hair ->
photo: a bee and a flower -> bee | flower
a close-up of a bee on a flower -> bee | flower
close up of a bee and a butterfly -> bee | butterfly
a dog looking at the camera ->
a dog with trees in the background ->
a cat next to another cat -> cat | cat
a man and his dog -> man | dog
a mouse and the moon -> mouse | moon
A Red Circle AND A Blue Square -> Red Circle | Blue Square
a cup on a table and a lamp next to the table -> cup | table | lamp
a (red) circle and a blue square -> circle | blue square
a sign that says "hello world" ->
a vase of flowers and a candle on a wooden table, soft light, bokeh -> vase of flowers | candle | wooden table
a chair made of wood and a glass table -> chair | glass table
a king and a queen sitting on thrones -> king | queen | thrones
a t-shirt and a pair of jeans -> t-shirt | jeans
a penguin surrounded by balloons -> penguin | balloons
a kitten and a duckling, cute and fluffy -> kitten | duckling
a pink elephant above a yellow star, minimalist -> pink elephant | yellow star
a cat in a hat ->
a fish bowl with a fish in it -> fish bowl | fish
two dogs next to each other ->
the left side of the image ->
un chat et un chien ->
ein Hund und eine Katze ->
一只猫和一只狗 ->
an astronaut on the moon ->
a train passing over a bridge -> train | bridge
a blue car parked next to a red truck -> blue car | red truck
an owl with a bow tie, a fox with glasses -> owl | bow tie | fox | glasses
a watercolor painting of a rose, a tulip and a daisy, pastel colors -> rose | tulip | daisy
a wizard casting a spell, fantasy art -> wizard | spell
a red cube left of a blue sphere and a green cone -> red cube | blue sphere | green cone
a teddy bear and a toy car -> teddy bear | toy car
a zebra running through a field ->
a photograph of two parrots and a toucan in a jungle -> parrots | toucan
a green triangle below a red heart -> green triangle | red heart
a bicycle leaning against a brick wall ->
a frog wearing a crown and a cape -> frog | crown | cape
a bowl of soup with a spoon -> bowl of soup | spoon
"""
ROWS = [tuple(part.strip() for part in line.split("->")) for line in TABLE.strip().splitlines()]

WORDS = [
    *sorted(subject_words.DETERMINERS | subject_words.STYLES | subject_words.ADJECTIVES | subject_words.QUANTITIES),
    *(word for link in subject_words.LINKS for word in link.split()),
    *(
        "cat",
        "dog",
        "cup",
        "of",
        "running",
        "ring",
        "the",
        "background",
        "by",
        ",",
        ", ",
        ".",
        "\n",
        "&",
        "+",
        "(",
        ")",
    ),
]
PROMPTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=24).map(" ".join) | st.text(max_size=60)


def phrases(prompt: str) -> list[str]:
    return [prompt[span.start : span.end] for span in find_subjects(prompt)]


@pytest.mark.parametrize(("prompt", "expected"), ROWS)
def test_a_prompt_names_these_things(prompt: str, expected: str) -> None:
    assert " | ".join(phrases(prompt)) == expected


def test_the_table_is_a_table() -> None:
    assert len(ROWS) >= 60 and len({prompt for prompt, _ in ROWS}) == len(ROWS)
    assert sum(expected == "" for _, expected in ROWS) >= 10


@settings(max_examples=400, deadline=None)
@given(PROMPTS)
def test_any_text_gives_separate_phrases_of_it(prompt: str) -> None:
    spans = find_subjects(prompt)
    assert spans == find_subjects(prompt) and len(spans) != 1
    ends = [0]
    for span in spans:
        assert ends[-1] <= span.start < span.end <= len(prompt)
        phrase = prompt[span.start : span.end]
        assert phrase == phrase.strip() and phrase[0].isalnum()
        ends.append(span.end)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["cat", "red ball", "tall tree", "cup of tea"]), min_size=2, max_size=6, unique=True))
def test_lists_of_things_are_found_completely(things: list[str]) -> None:
    assert phrases(" and ".join(f"a {thing}" for thing in things)) == things
    assert phrases(", ".join(f"a {thing}" for thing in things)) == things
    assert phrases("A photo of " + ", the ".join(things) + ", highly detailed") == things


@pytest.mark.parametrize("piece", ["photo of ", "running ", "cat ", "a cat and ", "red and ", ", a cat", "very "])
def test_a_long_text_takes_linear_time(piece: str) -> None:
    """A quadratic parser needs minutes for these."""
    find_subjects(piece * 5000)
