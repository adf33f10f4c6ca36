"""What other programs say."""

import subprocess


def output(*command: str) -> str | None:
    """Return what a command prints, None where it fails, is not there, or takes more than half a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
