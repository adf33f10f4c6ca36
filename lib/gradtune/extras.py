"""Packages that only some calls need: imported by those calls, and asked for by the extra that brings them."""

from importlib import import_module
from types import ModuleType

from gradtune.errors import GradtuneError

PROJECT = "gradtune"
"""Name of the distribution that has the extras."""


def needed(module: str, extra: str, what: str, command: str = "") -> ModuleType:
    """Import a package that the library's own dependencies do not bring.

    Args:
        module: name of the module, as in `import module`.
        extra: the extra of this project that installs it.
        what: what needs it, as the beginning of a sentence.
        command: the command that installs it, where the extra is not one of this project.

    Returns:
        The module.

    Raises:
        GradtuneError: the package is not installed; says which command installs it.
        ModuleNotFoundError: the package is installed, and something that it needs itself is not.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there, and something that it needs itself is not
        package = module.partition(".")[0]
        command = command or f"pip install '{PROJECT}[{extra}]'"
        raise GradtuneError(f"{what} needs {package}, which is not installed; install it with `{command}`") from None
