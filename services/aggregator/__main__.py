"""`python -m services.aggregator --config FILE`."""

import sys

from services.aggregator.program import main

if __name__ == "__main__":
    sys.exit(main())
