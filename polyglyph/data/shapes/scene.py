"""A scene of the built-in world: what is there, where, and how it moves.

Holds the words of the world, the geometry that every medium shares (cells, sizes, paths) and
`make_scene`, a pure function of (seed, split, index). Knows nothing of pixels, samples, captions
or ids.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache, lru_cache

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "big")
MOTIONS = ("still", "left", "right", "up", "down")
RISES = ("level", "up", "down")
CELLS = tuple((row, column) for row in range(3) for column in range(3))

# Every cell is 24 pixels, three codes of 8 wide, so that a thing is the same codes wherever it
# stands; four frames, one code in time, move it by 8 pixels, one code in space. With 64 pixels and
# centres 11, 32, 53 it stood in nine phases of the grid, each with codes of its own.
SIDE = 72  # pixels, both ways
N_FRAMES = 8
FPS = 8.0
CENTRES = (12, 36, 60)  # of the three rows and columns, pixels
DIAMETER = {"small": 14, "big": 20}  # pixels
SPEED = 2.0  # pixels a frame
N_FIRST = 4  # steps of the first motion; the other three are the second's
STEP = {"still": (0, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}

# Pairs of colour and shape that no training scene holds: they measure composition.
HELD_OUT = frozenset(
    {("yellow", "square"), ("cyan", "triangle"), ("orange", "cross"), ("purple", "ring")}
)

# What each medium carries. The order is from left to right, then from top to bottom. A text
# carries what it says, which `captions.parse_caption` tells.
OBSERVABLE: dict[str, tuple[str, ...]] = {
    "text": ("shape", "color", "size", "cell", "motion", "rise", "order"),
    "image": ("shape", "color", "size", "cell", "order"),
    "video": ("shape", "color", "size", "cell", "motion", "rise", "order"),
    "audio": ("shape", "color", "size", "rise", "order"),
}


@dataclass(frozen=True)
class Thing:
    """One object: cell is (row, column), motion is (first, second), equal unless it changes."""

    shape: str
    color: str
    size: str
    cell: tuple[int, int]
    motion: tuple[str, str] = ("still", "still")

    @property
    def rise(self) -> tuple[str, str]:
        """The vertical part of the motion, which a sound carries: level, up or down, twice."""
        return rise_of(self.motion)

    @property
    def diameter(self) -> int:
        """Pixels across."""
        return DIAMETER[self.size]


@dataclass(frozen=True)
class Scene:
    """One to three things in distinct cells, from left to right and then from top to bottom."""

    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        cells = [thing.cell for thing in self.things]
        assert len(set(cells)) == len(cells), "two things in one cell"
        object.__setattr__(self, "things", tuple(sorted(self.things, key=order_key)))

    def with_thing(self, index: int, **changes: object) -> Scene:
        """The scene with one thing changed."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)  # type: ignore[arg-type]
        return Scene(tuple(things))

    def at_rest(self) -> Scene:
        """The scene without its motions: what a picture shows."""
        return Scene(tuple(replace(thing, motion=("still", "still")) for thing in self.things))


def order_key(thing: Thing) -> tuple[int, int]:
    """From left to right, then from top to bottom: (column, row)."""
    return thing.cell[1], thing.cell[0]


def rise_of(motion: tuple[str, str]) -> tuple[str, str]:
    """("up", "left") is ("up", "level")."""
    first, second = (step if step in ("up", "down") else "level" for step in motion)
    return first, second


@cache
def path(cell: tuple[int, int], motion: tuple[str, str]) -> tuple[tuple[float, float], ...]:
    """Centres (y, x) in pixels at each of the frames; frame 0 is the centre of the cell."""
    y, x = float(CENTRES[cell[0]]), float(CENTRES[cell[1]])
    points = [(y, x)]
    for step in range(1, N_FRAMES):
        down, right = STEP[motion[0] if step <= N_FIRST else motion[1]]
        y, x = y + SPEED * down, x + SPEED * right
        points.append((y, x))
    return tuple(points)


@cache
def _stays_inside(cell: tuple[int, int], size: str, motion: tuple[str, str]) -> bool:
    radius = DIAMETER[size] / 2
    return all(
        radius <= y <= SIDE - radius and radius <= x <= SIDE - radius for y, x in path(cell, motion)
    )


_Body = tuple[tuple[int, int], str, tuple[str, str]]


@lru_cache(maxsize=1 << 16)
def _keep_apart(one: _Body, other: _Body) -> bool:
    reach = (DIAMETER[one[1]] + DIAMETER[other[1]]) / 2
    pairs = zip(path(one[0], one[2]), path(other[0], other[2]), strict=True)
    return all(abs(a[0] - b[0]) >= reach or abs(a[1] - b[1]) >= reach for a, b in pairs)


def is_legal(scene: Scene) -> bool:
    """Whether nothing leaves the picture and no two things overlap, at any frame; and whether a
    motion changes only in a scene of one thing."""
    bodies = [(thing.cell, thing.size, thing.motion) for thing in scene.things]
    if len(bodies) > 1 and any(first != second for _, _, (first, second) in bodies):
        return False
    if not all(_stays_inside(*body) for body in bodies):
        return False
    return all(_keep_apart(bodies[i], bodies[j]) for i in range(len(bodies)) for j in range(i))


@cache
def _steady(cell: tuple[int, int], size: str) -> tuple[tuple[str, str], ...]:
    return tuple((m, m) for m in MOTIONS if _stays_inside(cell, size, (m, m)))


@cache
def _changing(cell: tuple[int, int], size: str) -> tuple[tuple[str, str], ...]:
    pairs = ((a, b) for a in MOTIONS for b in MOTIONS if a != b)
    return tuple(pair for pair in pairs if _stays_inside(cell, size, pair))


def _kinds(held_out: bool) -> list[tuple[str, str]]:
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    return [pair for pair in pairs if (pair in HELD_OUT) == held_out]


_TRAINED, _HELD = _kinds(False), _kinds(True)
P_CHANGE = 0.35  # of the scenes of one thing, where a change is legal


def _moved(things: list[Thing], rng: random.Random) -> Scene:
    """The things with legal motions drawn for them."""
    if len(things) == 1:
        thing = things[0]
        changing = _changing(thing.cell, thing.size)
        steady = _steady(thing.cell, thing.size)
        choices = changing if changing and rng.random() < P_CHANGE else steady
        return Scene((replace(thing, motion=rng.choice(choices)),))
    for _ in range(16):
        scene = Scene(tuple(replace(t, motion=rng.choice(_steady(t.cell, t.size))) for t in things))
        if is_legal(scene):
            return scene
    return Scene(tuple(things))


def scene_rng(seed: int, index: int, split: str, purpose: str = "scene") -> random.Random:
    """The stream of random numbers of one scene and purpose; train and test share none."""
    assert split in ("train", "test"), split
    return random.Random(f"shapes/{purpose}/{split}/{seed}/{index}")


def make_scene(
    seed: int,
    index: int,
    split: str = "train",
    n_objects: int | None = None,
    held_out: bool = False,
) -> Scene:
    """The scene of (seed, index): one to three things, no two alike in shape and colour.

    `n_objects` fixes their number. `held_out` (test split only) asks that one of them be a pair
    of `HELD_OUT`; otherwise no scene holds any, of either split.
    """
    assert not (held_out and split == "train"), "held-out pairs are never trained"
    rng = scene_rng(seed, index, split)
    n = n_objects or rng.randint(1, 3)
    kinds = rng.sample(_TRAINED, n)
    if held_out:
        kinds[rng.randrange(n)] = rng.choice(_HELD)
    cells = rng.sample(CELLS, n)
    things = [
        Thing(shape, color, rng.choice(SIZES), cell)
        for (color, shape), cell in zip(kinds, cells, strict=True)
    ]
    return _moved(things, rng)


def box(thing: Thing, frame: int = 0) -> tuple[float, float, float, float]:
    """The thing's box at a frame: x0, y0, x1, y1 as shares of the picture's side."""
    y, x = path(thing.cell, thing.motion)[frame]
    r = thing.diameter / 2
    return (x - r) / SIDE, (y - r) / SIDE, (x + r) / SIDE, (y + r) / SIDE
