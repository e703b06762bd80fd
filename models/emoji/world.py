"""What the emoji model can be asked for: objects, backgrounds, prompts and the held-out split.

Owns the words and what they mean. Knows nothing of pixels, tensors or files, so the trainer, the
judge and the tests all read the same few tables.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

# The word a prompt uses -> the name in unicode-emoji-json (which gives the code point, hence the sprite).
OBJECTS: dict[str, str] = {
    "cat": "cat face", "dog": "dog face", "fox": "fox", "lion": "lion", "tiger": "tiger face",
    "bear": "bear", "panda": "panda", "koala": "koala", "monkey": "monkey face", "pig": "pig face",
    "cow": "cow face", "rabbit": "rabbit face", "frog": "frog", "unicorn": "unicorn",
    "elephant": "elephant", "giraffe": "giraffe", "zebra": "zebra", "penguin": "penguin", "owl": "owl",
    "flamingo": "flamingo", "parrot": "parrot", "duck": "duck", "chick": "baby chick",
    "turtle": "turtle", "snake": "snake", "dinosaur": "sauropod", "whale": "spouting whale",
    "shark": "shark", "fish": "tropical fish", "octopus": "octopus", "crab": "crab", "snail": "snail",
    "butterfly": "butterfly", "bee": "honeybee", "ladybug": "lady beetle",
    "apple": "red apple", "banana": "banana", "pineapple": "pineapple", "watermelon": "watermelon",
    "strawberry": "strawberry", "cherries": "cherries", "grapes": "grapes", "lemon": "lemon",
    "avocado": "avocado", "eggplant": "eggplant", "carrot": "carrot", "corn": "ear of corn",
    "broccoli": "broccoli", "mushroom": "mushroom", "pizza": "pizza", "hamburger": "hamburger",
    "french fries": "french fries", "hot dog": "hot dog", "taco": "taco", "donut": "doughnut",
    "cookie": "cookie", "cupcake": "cupcake", "cake": "birthday cake", "ice cream": "soft ice cream",
    "lollipop": "lollipop", "pretzel": "pretzel", "cheese": "cheese wedge",
    "cactus": "cactus", "sunflower": "sunflower", "rose": "rose", "tulip": "tulip",
    "palm tree": "palm tree", "maple leaf": "maple leaf",
    "car": "automobile", "bus": "bus", "tractor": "tractor", "bicycle": "bicycle",
    "airplane": "airplane", "rocket": "rocket", "sailboat": "sailboat", "house": "house",
    "umbrella": "umbrella", "balloon": "balloon", "gift": "wrapped gift", "trophy": "trophy",
    "soccer ball": "soccer ball", "basketball": "basketball", "guitar": "guitar", "drum": "drum",
    "camera": "camera", "light bulb": "light bulb", "key": "key", "hammer": "hammer", "book": "closed book",
    "crown": "crown", "backpack": "backpack", "alarm clock": "alarm clock", "bell": "bell",
    "snowman": "snowman without snow", "robot": "robot", "pumpkin": "jack-o-lantern",
}  # fmt: skip

# sRGB of the plain backgrounds.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250), "black": (18, 18, 20), "gray": (128, 128, 128), "red": (212, 38, 42),
    "orange": (244, 134, 28), "yellow": (250, 216, 56), "green": (48, 152, 62), "teal": (20, 152, 156),
    "blue": (42, 92, 214), "purple": (122, 52, 172), "pink": (246, 158, 194), "brown": (114, 70, 40),
}  # fmt: skip

SYNONYMS: dict[str, tuple[str, ...]] = {
    "dog": ("puppy",), "cat": ("kitten",), "rabbit": ("bunny",), "donut": ("doughnut",), "hamburger": ("burger",),
    "airplane": ("plane",), "bicycle": ("bike",), "gift": ("present",), "corn": ("ear of corn",),
    "soccer ball": ("football",), "pumpkin": ("jack-o-lantern",), "cake": ("birthday cake",),
    "pizza": ("slice of pizza",), "french fries": ("fries",), "ladybug": ("ladybird",), "dinosaur": ("sauropod",),
    "gray": ("grey",),
}  # fmt: skip

PLURAL = frozenset({"cherries", "grapes", "french fries", "fries"})
UNCOUNTED = frozenset({"cheese", "corn", "broccoli", "ice cream"})

SIZES: dict[str, tuple[str, ...]] = {
    "normal": ("",),
    "small": ("small", "tiny", "little"),
    "large": ("large", "big", "huge"),
}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "beside": ("and", "next to", "beside"),
}
# Longest side of an object as a fraction of the frame (low, high), and how far its centre may wander.
SCALES = {"normal": (0.58, 0.68), "small": (0.34, 0.42), "large": (0.82, 0.92), "pair": (0.38, 0.45)}
WANDER = {"normal": 0.05, "small": 0.10, "large": 0.02, "pair": 0.03}
PAIR_OFFSET = 0.25
SINGLE = ("{a}", "a picture of {a}", "an emoji of {a}", "a 3d emoji of {a}", "an icon of {a}")
GROUND = (
    "{what} on {bg}",
    "{what} on a {bg} background",
    "{what}, {bg} background",
    "{what} on a plain {bg} background",
    "{what} in front of a {bg} background",
    "a {bg} background with {what}",
)

OBJECT_WORDS = tuple(OBJECTS)
BACKGROUND_WORDS = tuple(BACKGROUNDS)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: one object, or two in a relation (the second is None for one)."""

    first: str
    background: str
    size: str = "normal"
    relation: str | None = None
    second: str | None = None


def held_out_pairs() -> frozenset[tuple[str, str]]:
    """The 216 (object, background) pairs that no training picture shows.

    Per object two or three backgrounds, those whose sha256 with the object's word sorts first: fixed
    for ever, and nothing of the order of the tables decides it but which objects give three.
    """
    pairs: set[tuple[str, str]] = set()
    for index, word in enumerate(OBJECT_WORDS):
        ranked = sorted(BACKGROUND_WORDS, key=lambda bg: hashlib.sha256(f"{word}|{bg}".encode()).digest())
        pairs.update((word, bg) for bg in ranked[: 3 if index % 4 == 0 else 2])
    return frozenset(pairs)


def seen_pairs() -> frozenset[tuple[str, str]]:
    every = {(word, bg) for word in OBJECT_WORDS for bg in BACKGROUND_WORDS}
    return frozenset(every - held_out_pairs())


def noun(word: str, size: str, rng: random.Random) -> str:
    """'a small cat', 'an apple', 'grapes': an object with its article and perhaps a size word."""
    word = _named(word, rng)
    phrase = f"{rng.choice(SIZES[size])} {word}".strip()
    if word in PLURAL or (word in UNCOUNTED and rng.random() < 0.5) or rng.random() < 0.15:
        return phrase
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the ways to say `scene`; now and then the background is left unsaid."""
    what = noun(scene.first, scene.size, rng)
    if scene.second is not None and scene.relation is not None:
        what = f"{what} {rng.choice(RELATIONS[scene.relation])} {noun(scene.second, 'normal', rng)}"
    elif rng.random() < 0.4:
        what = rng.choice(SINGLE).format(a=what)
    if rng.random() < 0.03:
        return what
    ground = GROUND[0] if rng.random() < 0.35 else rng.choice(GROUND)
    return ground.format(what=what, bg=_named(scene.background, rng))


def with_article(word: str) -> str:
    """'a cat', 'an owl', 'grapes'."""
    bare = word in PLURAL or word in UNCOUNTED
    return word if bare else f"{'an' if word[0] in 'aeio' else 'a'} {word}"


def plain_prompt(word: str, background: str) -> str:
    """The phrase the judge uses: 'a cat on a blue background', 'grapes on a white background'."""
    return f"{with_article(word)} on a {background} background"


def _named(word: str, rng: random.Random) -> str:
    others = SYNONYMS.get(word, ())
    return rng.choice(others) if others and rng.random() < 0.25 else word
