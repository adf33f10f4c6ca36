"""Which states of a training a tree of checkpoints keeps, how many steps it takes again, and Revolve's optimum.

Reverse mode visits the steps of a training from the last to the first, and each needs the state before it. A k-ary tree
(Engstrom et al. 2025, REPLAY) keeps few of these states: the steps are cut into k parts of nearly equal length, the
state before each part is kept, and a part is cut into k parts itself, by taking its steps again from the state before
it, when its turn comes. What belongs to a part is dropped once it has been visited.

Of T steps, for T = k^d, the tree takes `(d (k - 1) / k - 1) T + 1` again and keeps `d (k - 1) + 1` states at most:
memory grows as k log_k T, time as 1 + log_k T. For the same number of states, Revolve (Griewank and Walther 2000) takes
the fewest steps again that are possible; it cuts into parts whose lengths are binomial numbers.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from math import comb
from typing import NamedTuple

from gradtune.errors import at_least


class TreeCost(NamedTuple):
    """What reverse mode over a tree of checkpoints costs beside the training and one gradient with its graph a step.

    Attributes:
        replayed: training steps that are taken again.
        states: the largest number of states that are kept at once, the initial one among them.
    """

    replayed: int
    states: int


def parts(steps: int, branching: int) -> list[int]:
    """Return the lengths of the parts into which some steps are cut: nearly equal, the longer ones last.

    Args:
        steps: number of steps, >= 1.
        branching: k; there are k parts, or as many as there are steps.
    """
    count = min(steps, branching)
    length, longer = divmod(steps, count)
    return [length] * (count - longer) + [length + 1] * longer


def starts(steps: int, branching: int) -> list[int]:
    """Return the first step of each of `parts`, counted from 0."""
    return [0, *accumulate(parts(steps, branching)[:-1])]


def edge(steps: int, branching: int) -> list[int]:
    """Return the steps before which a training of some steps keeps its state: `starts`, and those of each last part.

    So the training itself cuts the last part, the last part of the last part and so on, without a step taken again.
    """
    found, first = [0], 0
    while steps > 1:
        inner = starts(steps, branching)
        found += [first + s for s in inner[1:]]
        first, steps = first + inner[-1], steps - inner[-1]
    return found


def tree_cost(steps: int, branching: int = 8) -> TreeCost:
    """Return what a tree of checkpoints costs.

    With n' the length of the longest part of n steps, F(n) the steps taken to reach the state before each of n steps
    from the first one, and M(n) the states kept for it::

        F(1) = 0,   F(n) = (n - n') + the sum of F over the parts of n
        M(1) = 1,   M(n) = min(k, n) - 1 + M(n')

    Of the F(T) steps, the training itself has taken T - 1. For T = k^d, F = d (k - 1) T / k and M = d (k - 1) + 1.

    Args:
        steps: T, the number of training steps, >= 1.
        branching: k, >= 2.

    Raises:
        GradtuneError: an argument is too small.
    """
    at_least(1, steps=steps)
    at_least(2, branching=branching)
    level, taken, states, longest = Counter({steps: 1}), 0, 1, steps
    while any(n > 1 for n in level):
        below: Counter[int] = Counter()
        for n, count in level.items():
            if n > 1:
                lengths = parts(n, branching)
                taken += count * (n - lengths[-1])
                for length in lengths:
                    below[length] += count
        states += min(branching, longest) - 1
        longest, level = parts(longest, branching)[-1], below
    return TreeCost(taken - (steps - 1), states)


def revolve_cost(steps: int, states: int) -> int:
    """Return how many steps Revolve takes again: the fewest possible with so many states.

    With r the smallest number for which `comb(states + r, r) >= steps`, reverse mode takes
    `r steps - comb(states + r, r - 1)` steps beside those with a graph (Griewank and Walther 2000, eq. 2), of which the
    training itself has taken `steps - 1`.

    Args:
        steps: T, the number of training steps, >= 1.
        states: states that are kept, the initial one among them, >= 1.

    Raises:
        GradtuneError: an argument is below 1.
    """
    at_least(1, steps=steps, states=states)
    r = 0
    while comb(states + r, r) < steps:
        r += 1
    return r * steps - (comb(states + r, r - 1) if r else 0) - (steps - 1)
