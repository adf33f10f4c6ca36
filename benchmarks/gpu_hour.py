"""The parts of `gpu_hour.sh` that are no study: what there is, whether methods agree with the CPU, how fast steps are.

It needs torch, torchvision, numpy, pandas, scikit-learn and tqdm, and neither Jupyter nor optuna::

    python benchmarks/gpu_hour.py versions|agree|speed [--device cuda] [--quick]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "lib")]

NEEDED = {"torch": "torch>=2.11", "torchvision": "torchvision", "numpy": "numpy>=2.1", "tqdm": "tqdm"}
NEEDED |= {"pandas": "pandas", "sklearn": "scikit-learn", "scipy": "scipy", "PIL": "pillow"}
"""Packages by the name that is imported, and as pip takes them."""


def versions(device_name: str, quick: bool) -> int:
    """Print with what is computed; fail where it cannot be."""
    if absent := [wanted for name, wanted in NEEDED.items() if find_spec(name) is None]:
        print(f"missing packages; run: {sys.executable} -m pip install {' '.join(f'{each!r}' for each in absent)}")
        return 2
    import torch

    from gradtune_book.records import environment, gpu

    python, release = sys.version_info[:2], tuple(map(int, torch.__version__.split(".")[:2]))
    if python < (3, 11) or release < (2, 11):
        print(f"Python {python} and torch {torch.__version__} are here; Python 3.11 and torch 2.11 are the oldest")
        return 2
    device = environment.device(device_name)
    commit, dirty = environment.commit()
    print(f"{environment.describe(device)}; commit {commit or 'unknown'}{' (changed)' if dirty else ''}")
    print(", ".join(f"{name} {version}" for name, version in environment.versions().items()))
    with environment.as_recorded(device):
        for name, value in (gpu.described(device) or {}).items():
            print(f"  {name}: {value}")
    if device.type == "cuda":
        print(f"  memory: {torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GB")
    return 0


def agree(device_name: str, quick: bool) -> int:
    """Print how far every method on the device is from the CPU in float64; fail where one is beyond rounding."""
    from benchmarks import agreement
    from gradtune_book.records import environment

    device, bad = environment.device(device_name), 0
    print(f"{'method':18} {'net':9} {'rule':7} {'weights':>9} {'hypers':>9}")
    with environment.as_recorded(device):
        for case in agreement.compared(device, quick):
            mark = "" if case.good else "  APART"
            bad += not case.good
            print(
                f"{case.method:18} {case.net:9} {case.rule:7} {case.weights:9.1e} {case.hypers:9.1e}{mark}", flush=True
            )
    print(f"{bad} cases differ by more than {agreement.TOLERANCE}" if bad else "all methods agree with the CPU")
    return 1 if bad else 0


def speed(device_name: str, quick: bool) -> int:
    """Print many runs at once, and the table of what steps cost, which is recorded."""
    from benchmarks import at_once, step_cost
    from gradtune_book.records import environment

    device = environment.device(device_name)
    with environment.as_recorded(device):
        at_once.runs_at_once(device, quick)
    rows = ["--quick", "--repeats", "1", "--rows", "columns-2"] if quick else ["--record", "--repeats", "3"]
    return step_cost.main(["--device", device_name, *rows])


PARTS = {"versions": versions, "agree": agree, "speed": speed}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a part and return its exit status.

    Args:
        argv: Arguments of the command line. None takes them from `sys.argv`.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N or cpu")
    parser.add_argument("--quick", action="store_true", help="few cases, to try the script")
    options = parser.parse_args(argv)
    part = PARTS[options.part]
    if options.part == "versions":
        return part(options.device, options.quick)
    from gradtune.errors import GradtuneError

    try:
        return part(options.device, options.quick)
    except GradtuneError as error:
        print(error, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
