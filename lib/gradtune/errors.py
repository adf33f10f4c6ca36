"""The one exception a user's mistake raises, and the sentence for a name that does not exist."""

import difflib
from collections.abc import Iterable
from numbers import Integral


class GradtuneError(ValueError):
    """A user's mistake or a machine's fault in one sentence: what is wrong, what was expected, what to do.

    The command line prints the sentence alone, without a traceback, and exits with `exit_status`.
    """

    exit_status = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(str(message).split()))  # one line, also where a value in it is printed in several


class GradtuneWarning(UserWarning):
    """What is allowed and seldom meant, in one sentence: what may happen, and what to do."""


def unknown(kind: str, name: object, known: Iterable[str]) -> GradtuneError:
    """Return (not raise) the error for a `name` that is none of `known`, with the nearest known name.

    Args:
        kind: what the name stands for, as it reads in the sentence ("study", "parameter of ClipConfig").
        name: what was given.
        known: every name that would have been right.
    """
    names = sorted(known)
    lower = {each.lower(): each for each in names}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]!r}? " if near else ""
    choice = f"known: {', '.join(names)}" if names else "there is none"
    return GradtuneError(f"unknown {kind} {name!r}; {hint}{choice}")


def at_least(low: int, **values: int) -> None:
    """Check that the named values are whole numbers of `low` or more; True, 1.0 and "1" are none.

    What has no place in 64 bits is none either.

    Raises:
        GradtuneError: one of them is not; names the first.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value < 2**63:
            end = " and < 2**63" if isinstance(value, Integral) and value >= 2**63 else ""
            raise GradtuneError(f"{name} = {short(value)}; expected a whole number >= {low}{end}")


def short(value: object) -> str:
    """Return how Python writes a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
