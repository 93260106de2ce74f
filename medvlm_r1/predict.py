"""``python -m medvlm_r1.predict``: see :mod:`medvlm_r1.cli.predict`."""

import sys

from medvlm_r1.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
