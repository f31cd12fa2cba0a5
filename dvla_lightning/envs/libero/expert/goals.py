"""The goals of a task, in an order in which they can be reached; knows no simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dvla_lightning.errors import UserError

PLACING = ("on", "in")
MOVING = ("open", "close", "turnon", "turnoff")


@dataclass(frozen=True)
class Goal:
    """One predicate of a goal.

    Attributes:
        predicate: one of PLACING and MOVING, as LIBERO spells them.
        subject: the object to place; or the drawer's region, the door's or the knob's furniture.
        target: the object or region to place it on or in; "" for MOVING.
    """

    predicate: str
    subject: str
    target: str = ""

    @property
    def words(self) -> list[str]:
        """The goal in LIBERO's form, a list of words."""
        return [word for word in (self.predicate, self.subject, self.target) if word]


def read_goals(goal_state: Sequence[Sequence[str]]) -> list[Goal]:
    """LIBERO's conjunction as goals.

    Raises:
        UserError: if there is a predicate that the expert has no skill for.
    """
    for predicate, *names in goal_state:
        if len(names) != {**dict.fromkeys(PLACING, 2), **dict.fromkeys(MOVING, 1)}.get(predicate):
            raise UserError(
                f"the LIBERO expert cannot do ({' '.join([predicate, *names])}); it knows: "
                f"{', '.join(PLACING + MOVING)}"
            )
    return [Goal(*words) for words in goal_state]


def plan(
    open_goals: Sequence[Goal], door_of: Callable[[str], str | None], is_open: Callable[[str], bool]
) -> list[Goal]:
    """An order for the goals that do not hold yet, with the doors opened that stand in the way.

    First what is closed for its own sake (an open drawer is in the way of the arm), then knobs, opening, placing,
    and last closing what something was put into. What carries something is placed before what it carries.

    Args:
        open_goals: the goals that do not hold yet.
        door_of: region -> the name under which its drawer or door is opened and closed; None if it has none.
        is_open: whether such a door is open.
    """
    placing = _carriers_first([goal for goal in open_goals if goal.predicate in PLACING])
    doors = [door for goal in placing if (door := door_of(goal.target))]
    to_open = [Goal("open", door) for door in dict.fromkeys(doors) if not is_open(door)]

    def of(*predicates: str) -> list[Goal]:
        return [goal for goal in open_goals if goal.predicate in predicates]

    early = [goal for goal in of("close") if goal.subject not in doors]
    late = [goal for goal in of("close") if goal.subject in doors]
    opening = list(dict.fromkeys([*of("open"), *to_open]))
    return [*early, *of("turnon", "turnoff"), *opening, *placing, *late]


def _carriers_first(placing: list[Goal]) -> list[Goal]:
    ordered: list[Goal] = []
    waiting = list(placing)
    while waiting:
        moving = {goal.subject for goal in waiting}
        # A cycle cannot be stacked at all; then any order is as good.
        following = next((goal for goal in waiting if goal.target not in moving), waiting[0])
        ordered.append(following)
        waiting.remove(following)
    return ordered
