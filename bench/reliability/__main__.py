import sys

from ebca.bench.reliability.cli import main

sys.exit(main())
