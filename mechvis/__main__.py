"""`python -m mechvis` is the command `mechvis`."""

import sys

from mechvis.cli import main

if __name__ == "__main__":
    sys.exit(main())
