"""`python -m cifarlib`."""

import locale
import os
import sys

if not sys.flags.utf8_mode and locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"):
    os.environ["PYTHONUTF8"] = "1"  # for the runs, too: all files are in UTF-8, and names need not be ASCII
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])

try:
    from .cli import main

    code = main()
except KeyboardInterrupt:  # before the command itself can say so
    print("cifarlib: interrupted", file=sys.stderr)
    code = 130
sys.exit(code)
