"""`python -m services.coordinator --config FILE`."""

import sys

from services.coordinator.program import main

if __name__ == "__main__":
    sys.exit(main())
