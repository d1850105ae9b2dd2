"""How a series is drawn follows from what it is: roles, and a look per label."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

from icl_jax.report import arguments

Role = Literal["main", "second", "reference", "control"]
ROLES: tuple[str, ...] = get_args(Role)

# Variants within one role; a role's hues are the colour-blind-safe ones of Okabe and Ito, darkened.
# All have a contrast of at least 3:1 on the white plate, and their ``style.DARK`` on the dark one.
_COLOURS = {
    "main": ("#0b5c94", "#3089c6", "#083a5e"),
    "second": ("#c85a06", "#b0487f", "#0f8265"),
    "reference": ("#111111",),
    "control": ("#767676", "#8e8e8e", "#5c5c5c"),
}
_LINES: dict[str, tuple[Any, ...]] = {
    "main": ("-", (0, (7, 1.5)), (0, (3, 1))),
    "second": ((0, (5, 2)), (0, (5, 1.5, 1.5, 1.5)), (0, (2, 1))),
    "reference": ((0, (1, 1.6)), (0, (4, 1.5, 1, 1.5)), (0, (8, 2))),
    "control": ("-", (0, (4, 2)), (0, (1, 1.5))),
}
#: What is beyond an axis: below it, left and right of it. No series has one of these.
BEYOND = ("v", "<", ">")
# No two series of a figure share a marker, so as many as these can be told apart.
_POINTS = {
    "main": ("o", "s", "^", "p", "h", "8"),
    "second": ("D", "P", "X", (4, 1, 0), (5, 0, 180), (6, 1, 0)),
    "reference": ("|", "_", "1"),
    "control": ("x", "+", "d", "*", "2", "3", "4", "H", (5, 2)),
}
_MARKERS: dict[str, tuple[Any, ...]] = {**_POINTS, "reference": ("", "", "")}
WIDTHS = {"main": 2.0, "second": 1.7, "reference": 1.3, "control": 1.4}


@dataclasses.dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    colour: str
    line: Any
    marker: Any
    point: Any
    width: float
    filled: bool


class Looks:
    """Gives each label of a figure its look: by role, then by order of appearance within it."""

    def __init__(self, where: str):
        self._where = where
        self._roles: dict[str, str] = {}
        self._looks: dict[str, Look] = {}

    def add(self, label: str, role: str) -> None:
        """Enters a label; again with the same role changes nothing, with another is an error."""
        if role not in ROLES:
            raise ValueError(
                f"{self._where}: role of {label!r} must be one of "
                f"{', '.join(map(repr, ROLES))}, got {role!r}."
            )
        if label in self._roles:
            if self._roles[label] != role:
                raise ValueError(
                    f"{self._where}: label {label!r} has role {self._roles[label]!r} and role "
                    f"{role!r}. One label is one condition: rename one of them."
                )
            return
        i = list(self._roles.values()).count(role)
        if i == len(_POINTS[role]):
            raise ValueError(
                f"{self._where}: {label!r} is one {role} more than the {i} that can be told apart. "
                "Draw some of them in another figure."
            )
        self._roles[label] = role
        self._looks[label] = Look(
            colour=_COLOURS[role][i % len(_COLOURS[role])],
            line=_LINES[role][i % len(_LINES[role])],
            marker=_MARKERS[role][i],
            point=_POINTS[role][i],
            width=WIDTHS[role],
            filled=role == "main",
        )

    def __getitem__(self, label: str) -> Look:
        return self._looks[label]

    def order(self, entries: dict[str, Any]) -> dict[str, Any]:
        """Legend entries in the order in which the caller listed the series."""
        known = {label: entries[label] for label in self._looks if label in entries}
        return known | {label: entry for label, entry in entries.items() if label not in known}


def group_looks(where: str, groups: Sequence[str], roles: Sequence[str] | None) -> Looks:
    """A look per condition; without roles, the first is what we claim something about."""
    if roles is None:
        roles = ["main"] + ["control"] * (len(groups) - 1)
    arguments.same_length(where, groups=groups, roles=roles)
    if len(set(groups)) != len(groups):
        raise ValueError(f"{where}: groups must have different names, got {list(groups)}.")
    looks = Looks(where)
    for group, role in zip(groups, roles, strict=True):
        looks.add(group, role)
    return looks


def back_to_front(roles: Sequence[str]) -> list[int]:
    """The order of drawing: controls first, what we claim something about last."""
    return sorted(range(len(roles)), key=lambda i: -ROLES.index(roles[i]))
