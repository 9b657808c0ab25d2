"""The words that the parser of subjects knows, in lower case. It takes any other word for a part of a thing's name."""

from enum import Enum


class Link(Enum):
    """What a joining word says about the words after it."""

    THING = "another thing"
    ON = "another thing, unless it is scenery"
    WITH = "another thing, unless it is a part or a quality of the last one"
    BARE = "a part of a list without articles: another thing, unless it is scenery, a part or a quality"
    JOIN = "the same as before"
    NONE = "no thing with a place of its own"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(text: str) -> frozenset[str]:
    return frozenset(" ".join(each.split()) for each in text.split(","))


DETERMINERS = _words(
    """a an the this that these those my your his her its our their some several many few any each every both all
    another other one two three four five six seven eight nine ten eleven twelve dozen various multiple single
    no"""
)

QUANTITIES = _words(
    "pair group bunch couple set lot lots number row pile stack variety collection dozens herd flock pack"
)
"""Before "of": how many, not what."""

STYLES = _words(
    """photo photos photograph picture image painting drawing sketch illustration portrait render rendering
    close-up closeup shot view scene poster watercolor watercolour etching engraving artwork art cartoon
    photography snapshot selfie print depiction wallpaper lithograph woodcut collage mosaic caricature cgi
    animation still doodle graphic composition"""
)
"""What the image is. Before one of `OF`, it says nothing about what it shows."""

OF = _words("of showing depicting featuring containing with")

MODIFIERS = STYLES | _words(
    """detailed detail details 2k 4k 8k 16k hd uhd hdr hq fhd masterpiece quality resolution artstation
    deviantart pixiv trending lighting light lit focus focused cinematic photorealistic realistic
    hyperrealistic photo-realistic hyper-realistic realism octane unreal engine style styled stylized digital
    concept aesthetic vibrant dramatic moody intricate elegant sharp blurry lowres bokeh dslr canon nikon
    leica film grain grainy award-winning winning professional unsplash sunset sunrise daylight nighttime
    daytime dusk dawn hour sunny rainy foggy cloudy minimalist minimalism minimalistic anime manga comic 3d 2d
    pixel vector lowpoly low-poly isometric background foreground depth symmetrical symmetry centered centred
    atmosphere atmospheric ambient colors colours color colour palette contrast tones volumetric raytracing
    ray-tracing rays shadows reflections canvas acrylic pastel charcoal gouache surreal surrealism abstract
    impressionism impressionist expressionism baroque renaissance cubism cubist vintage retro cyberpunk
    steampunk futuristic fantasy epic amazing stunning gorgeous perfect best high highly ultra extremely very
    hyper intricately rendered shaded smooth clear crisp view angle lens macro wide-angle panoramic closeup
    close-up solo 1girl 1boy composition macro-shot bright warm soft cold natural studio outdoors outdoor
    indoors indoor simple complex wallpaper poster logo nsfw sfw texture textured pose posing looking smiling
    standing sitting full-body body exposure mood"""
)
"""Of an addition after a comma: none of these is in the name of a thing there."""

ADJECTIVES = _words(
    """red orange yellow green blue purple pink brown black white gray grey cyan magenta violet turquoise teal
    gold golden silver beige maroon navy crimson scarlet indigo lime dark light pale bright big small large
    little tiny huge giant gigantic tall short long thin thick fat old young new ancient cute adorable
    beautiful pretty ugly happy sad angry fluffy furry round wooden metallic shiny striped spotted colorful
    colourful majestic fierce wild wet dry hot cold warm soft hard heavy open closed empty full broken clean
    dirty sharp clear smooth calm quiet loud fresh ripe plastic"""
)

NOUNS_TOO = _words("orange gold silver violet lime plastic teal")
"""Adjectives that are things after an article: an apple and an orange."""

LINKS: dict[str, Link] = {
    **dict.fromkeys(
        _phrases(
            "and, &, +, plus, as well as, along with, together with, alongside, and also, and then, and also with"
        ),
        Link.JOIN,
    ),
    **dict.fromkeys(
        _phrases(
            """next to, close to, left of, right of, to the left of, to the right of, on the left of, on the
            right of, at the left of, at the right of, on the left side of, on the right side of, to the side
            of, on the side of, above, below, under, underneath, beneath, behind, beside, besides, near,
            nearby, between, in between, around, in front of, in back of, on top of, atop, facing, opposite,
            versus, vs, surrounded by, followed by, accompanied by, is, are, was, were, has, have, having,
            who, which, that is, that has, while, as if, rides, sits, stands, wears, holds, chases, plays,
            eats, carries, watches, hugs, kisses, follows, pulls, pushes, drives, jumps, runs, walks, flies,
            swims, sleeps, lies, hangs, meets, fights, sees, touches, inside of, shows"""
        ),
        Link.THING,
    ),
    **dict.fromkeys(_phrases("on, upon, onto, over, against, past"), Link.ON),
    **dict.fromkeys(_phrases("with, made up of, made with"), Link.WITH),
    **dict.fromkeys(
        _phrases(
            """in, at, into, inside, within, outside, through, across, along, among, amongst, amid, during, from,
            to, toward, towards, down, up, off, for, like, as, without, than, not, but, via, per, made of,
            made from, made out of, dressed as, dressed in, dressed like, covered in, covered with, covered
            by, filled with, full of, painted, drawn by, painted by, in the style of, in style of, inspired
            by, trending on, featured on, based on, lit by, looking at, seen from, known as, called, named,
            because, so, where, when, there, whose, about"""
        ),
        Link.NONE,
    ),
}
"""What joins the things of a prompt, as it stands in it. "by" is told apart by what follows; see the parser."""

LONGEST_LINK = max(len(link.split()) for link in LINKS)

ING_NOUNS = _words(
    """ring king wing string spring building painting ceiling swing thing sibling duckling dumpling pudding
    evening morning clothing earring railing icing sling viking herring lightning seedling wedding drawing
    starling gosling pudding sterling bling dressing stocking awning living landing crossing icing fledgling
    hatchling"""
)

PLACES = _words(
    """left right top bottom side middle center centre corner edge front back background foreground distance end
    rest them it him me us you they he she himself herself itself themselves together somewhere nothing
    something everything one ones same way time"""
)
"""Parts of the image, and words that stand for things that are named elsewhere."""

SCENES = _words(
    """beach street road path grass lawn field meadow background wall floor ground lake ocean sea water river
    snow sand hill mountain mountains moon mars city town sky stars rain forest woods park garden jungle
    desert stage world island space night day sunset sunrise sun room kitchen village shore coast clouds fog
    mist landscape cityscape horizon earth"""
)

PARTS = _words(
    """eye eyes hair face smile skin fur beard ear ears tooth teeth arm arms leg legs hand hands paw paws mouth
    nose lips tail wing wings horn horns feather feathers mane expression freckles muscles lighting light
    lights details detail background colors colours texture reflections reflection shadow shadows bokeh look
    pose style stripes spots dots outline border foreground focus effect effects tongue head body heads
    whiskers"""
)

TRAILING = _words(
    """together outside outdoors indoors nearby away there here apart alone side-by-side too also only again of
    or and very well still up down out by as to parked perched seated tied attached placed dressed mounted
    piled stacked gathered"""
)
"""At the end of a phrase, no part of it."""
