"""Print what answering with a model needs in memory: ``paddlemix-vl2 estimate``."""

import sys

from paddlemix_vl2.cli.estimate import main

if __name__ == "__main__":
    sys.exit(main())
