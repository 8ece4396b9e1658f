"""`python -m alloralib.cli`, the same as `allora`."""

import sys

from .main import main

sys.exit(main())
