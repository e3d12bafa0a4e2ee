"""`python -m cifarlib`."""

import sys

try:
    from .cli import main

    code = main()
except KeyboardInterrupt:  # before the command itself can say so
    print("cifarlib: interrupted", file=sys.stderr)
    code = 130
sys.exit(code)
