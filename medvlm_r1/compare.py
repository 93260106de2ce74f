"""``python -m medvlm_r1.compare``: see :mod:`medvlm_r1.cli.compare`."""

import sys

from medvlm_r1.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
