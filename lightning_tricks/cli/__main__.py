"""``python -m lightning_tricks.cli``, for environments without the installed script."""

import sys

from lightning_tricks.cli import main

if __name__ == "__main__":
    sys.exit(main())
