"""``python -m fastkl`` is the command ``fastkl``."""

import os
import sys


def refuse(error: ImportError) -> None:
    """Of the command, which cannot be asked before the package is imported, the answer is one line as to all errors."""
    if os.path.basename(sys.argv[0]) == "fastkl" or (sys.argv[0] == "-m" and "fastkl" in sys.orig_argv):
        print(f"fastkl: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    from fastkl.batch.command import main

    sys.exit(main())
