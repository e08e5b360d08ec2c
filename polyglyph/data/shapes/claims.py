"""What a text says about a scene, and how much of it a thing read back fulfils.

A text gives constraints, not a scene: what it leaves open may be anything legal. Knows nothing of
wordings, pixels or samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations

from polyglyph.data.shapes.check import Observed
from polyglyph.data.shapes.scene import rise_of

_PLAIN = ("shape", "color", "size", "cell", "motion", "rise")
_MOST = 4  # claims that are tried in every order; a text with more is no caption of ours
_STILL = ("still", "still")
_LEVEL = ("level", "level")


@dataclass(frozen=True)
class Claim:
    """What is said of one thing; None is left open."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    cell: tuple[int, int] | None = None
    motion: tuple[str, str] | None = None
    rise: tuple[str, str] | None = None

    def said(self, attribute: str) -> object:
        """The attribute's value; a motion tells the rise."""
        if attribute == "rise" and self.rise is None and self.motion is not None:
            return rise_of(self.motion)
        return getattr(self, attribute)

    def finished(self) -> Claim:
        """As an answer means it: whatever is not said to move stands still."""
        if self.motion is None and self.rise is None:
            return Claim(self.shape, self.color, self.size, self.cell, _STILL, _LEVEL)
        return self


@dataclass(frozen=True)
class Verdict:
    """How a result did: `right` of `total` attributes, and `ok` when nothing at all is wrong."""

    ok: bool
    right: int
    total: int
    detail: tuple[str, ...] = ()
    by_attribute: dict[str, tuple[int, int]] = field(default_factory=dict)  # right, total

    @property
    def share(self) -> float:
        """Right attributes of all, in [0, 1]."""
        return self.right / self.total if self.total else float(self.ok)


@dataclass(frozen=True)
class Constraints:
    """Claims about all the things there are, and relations (i, relation, j) between them.

    A relation is one of left, right, above, below, before.
    """

    things: tuple[Claim, ...]
    relations: tuple[tuple[int, str, int], ...] = ()

    def check(
        self, observed: Sequence[Observed], attributes: Iterable[str], complete: bool = False
    ) -> Verdict:
        """The best reading of the claims against what was observed, on some attributes.

        With `complete` the claims are an answer and must state every attribute; without, they are
        a wish, and only what they state counts. The number of things always counts.
        """
        wanted = tuple(attributes)
        claims = [claim.finished() for claim in self.things] if complete else list(self.things)
        relations = _with_order(self, wanted)
        n = max(len(claims), len(observed))
        seats: list[Observed | None] = [*observed, *[None] * (n - len(observed))]
        best: list[tuple[str, bool, str]] | None = None
        best_right = -1
        orders = permutations(range(n), len(claims))
        for order in orders if len(claims) <= _MOST else [tuple(range(len(claims)))]:
            rows = _compare(claims, [seats[i] for i in order], wanted, complete)
            rows += _relate(relations, order, seats, wanted)
            right = sum(good for _, good, _ in rows)
            if right > best_right:
                best, best_right = rows, right
            if right == len(rows):
                break
        assert best is not None
        if complete and "order" in wanted and "cell" not in wanted:
            unsaid = len(claims) - 1 - sum(name == "order" for name, _, _ in best)
            best += [("order", False, "order not said")] * unsaid
        count = len(claims) == len(observed)
        best.append(("count", count, f"{len(observed)} things, not {len(claims)}"))
        return _verdict(best)


def constraints_of(observed: Sequence[Observed]) -> Constraints:
    """Everything read back, as constraints: what another medium of the scene should show."""
    claims = tuple(Claim(o.shape, o.color, o.size, o.cell, o.motion, o.rise) for o in observed)
    return Constraints(claims, tuple((i, "before", i + 1) for i in range(len(claims) - 1)))


def _verdict(rows: list[tuple[str, bool, str]]) -> Verdict:
    tally: dict[str, tuple[int, int]] = {}
    for attribute, good, _ in rows:
        right, total = tally.get(attribute, (0, 0))
        tally[attribute] = right + good, total + 1
    wrong = tuple(text for _, good, text in rows if not good)
    return Verdict(not wrong, len(rows) - len(wrong), len(rows), wrong, tally)


def _words(value: object) -> str:
    return " ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def _compare(
    claims: Sequence[Claim],
    seen: Sequence[Observed | None],
    wanted: Sequence[str],
    complete: bool,
) -> list[tuple[str, bool, str]]:
    """(attribute, right, what is wrong) of every statement."""
    rows = []
    for claim, thing in zip(claims, seen, strict=True):
        name = " ".join(w for w in (claim.size, claim.color, claim.shape) if w) or "thing"
        for attribute in _PLAIN:
            if attribute not in wanted:
                continue
            said = claim.said(attribute)
            if said is None and not complete:
                continue
            there = None if thing is None else getattr(thing, attribute)
            good = said is not None and said == there
            text = f"{name}: {attribute} {_words(there)}, not {_words(said)}"
            rows.append((attribute, good, f"{name}: missing" if thing is None else text))
    return rows


def _with_order(said: Constraints, wanted: Sequence[str]) -> tuple[tuple[int, str, int], ...]:
    """The relations, with those that the cells imply where only the order can be seen."""
    if "cell" in wanted or "order" not in wanted:
        return said.relations
    cells = [(claim.cell[::-1], i) for i, claim in enumerate(said.things) if claim.cell]
    ranked = [i for _, i in sorted(cells)]
    implied = [(a, "before", b) for a, b in pairwise(ranked)]
    return said.relations + tuple(implied)


def _relate(
    relations: Iterable[tuple[int, str, int]],
    order: Sequence[int],
    seats: Sequence[Observed | None],
    wanted: Sequence[str],
) -> list[tuple[str, bool, str]]:
    rows = []
    for i, relation, j in relations:
        one, other = seats[order[i]], seats[order[j]]
        name = "order" if relation == "before" else "cell"
        if relation in ("left", "right") and "cell" not in wanted:
            name = "order"
        if name not in wanted:
            continue
        if one is None or other is None:
            good = False
        elif name == "order":
            good = (order[i] > order[j]) if relation == "right" else (order[i] < order[j])
        else:
            good = _holds(one, relation, other)
        rows.append((name, good, f"not {relation}: {_name(one)} and {_name(other)}"))
    return rows


def _name(thing: Observed | None) -> str:
    return "nothing" if thing is None else f"{thing.size} {thing.color} {thing.shape}"


def _holds(one: Observed, relation: str, other: Observed) -> bool:
    if one.cell is None or other.cell is None:
        return False
    axis = 1 if relation in ("left", "right") else 0
    apart = one.cell[axis] - other.cell[axis]
    return apart < 0 if relation in ("left", "above") else apart > 0
