"""``python -m medvlm_r1.export``: see :mod:`medvlm_r1.cli.export`."""

import sys

from medvlm_r1.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
