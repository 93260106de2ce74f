"""``python -m medvlm_r1.matrix``: see :mod:`medvlm_r1.cli.matrix`."""

import sys

from medvlm_r1.cli.matrix import main

if __name__ == "__main__":
    sys.exit(main())
