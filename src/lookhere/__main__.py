"""``python -m lookhere``."""

import sys

from lookhere.cli import main

sys.exit(main())
