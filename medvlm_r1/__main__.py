"""``python -m medvlm_r1``: see :mod:`medvlm_r1.cli.main`."""

import sys

from medvlm_r1.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
