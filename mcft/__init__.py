__version__ = "0.1.0"

import sys

if sys.platform == "win32":
    raise ImportError("mcft runs on Linux, macOS and Windows through WSL, not on Windows itself: run it inside WSL")
