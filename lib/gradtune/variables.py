"""The environment variables that the project reads: `GRADTUNE_<NAME>`."""

import os

from gradtune.errors import GradtuneError

PREFIX = "GRADTUNE_"
_FORMER_PREFIX = "GRADHPO_"  # the project's name before its first release


def read(name: str) -> str:
    """Return the value of the variable `GRADTUNE_<name>`, "" when it is not set.

    Read at each call, so that tests and notebooks may set it at any time.

    Raises:
        GradtuneError: only the variable's former name is set, which would otherwise be ignored without a word.
    """
    value = os.environ.get(PREFIX + name, "").strip()
    if not value and os.environ.get(_FORMER_PREFIX + name, "").strip():
        raise GradtuneError(
            f"the environment variable {_FORMER_PREFIX}{name} is no longer read; "
            f"rename it to {PREFIX}{name} (or unset it)"
        )
    return value
