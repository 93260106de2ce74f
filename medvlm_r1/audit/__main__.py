"""``medvlm-r1 audit``: see :mod:`medvlm_r1.cli.audit`."""

import sys

from medvlm_r1.cli.audit import main

if __name__ == "__main__":
    sys.exit(main())
