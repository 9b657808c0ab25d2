import sys

from ebca.bench.kernel.cli import main

sys.exit(main())
