"""`python -m gradhpo` is the command `gradhpo`."""

import sys

from gradhpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
