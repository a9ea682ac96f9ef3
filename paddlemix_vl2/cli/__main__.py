"""``python -m paddlemix_vl2.cli`` is ``paddlemix-vl2``."""

import sys

from paddlemix_vl2.cli import main

if __name__ == "__main__":
    sys.exit(main())
