"""`python -m ebca.export.cli`, the same as `ebca-export`."""

import sys

from ebca.export.cli.run import main

sys.exit(main())
