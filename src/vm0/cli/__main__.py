"""`python -m vm0.cli`: the same as `vm0`."""

from __future__ import annotations

import sys

from vm0.cli.main import main

sys.exit(main())
