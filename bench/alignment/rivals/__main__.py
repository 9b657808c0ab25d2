import sys

# Processes that read images import this module too, under another name; they do not need PyTorch.
if __name__ == "__main__":
    from ebca.bench.alignment.rivals.cli import main

    sys.exit(main())
