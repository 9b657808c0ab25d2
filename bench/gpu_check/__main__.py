import sys

from ebca.bench.gpu_check.cli import main

sys.exit(main())
