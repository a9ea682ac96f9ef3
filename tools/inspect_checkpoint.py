"""Show what a checkpoint holds, and where it differs from its config: ``paddlemix-vl2 inspect``."""

import sys

from paddlemix_vl2.cli.inspect import main

if __name__ == "__main__":
    sys.exit(main())
