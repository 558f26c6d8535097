"""`python -m services.keyserver --config FILE`."""

import sys

from services.keyserver.program import main

if __name__ == "__main__":
    sys.exit(main())
