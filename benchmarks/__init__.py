"""How fast vm0 is, each number against a baseline that is measured in the same run: `python -m benchmarks`.

One module per benchmark; its docstring says what is measured. `catalogue` lists them, `measurement` and `report` hold
what they share, `guest`, `peers` and `plane` start the real parts.
"""

from __future__ import annotations
