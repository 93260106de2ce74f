"""``python -m medvlm_r1.sweep``: see :mod:`medvlm_r1.cli.sweep`."""

import sys

from medvlm_r1.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
