"""`python -m flair_jax` is the command `flair-jax`."""

import sys

from flair_jax.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
