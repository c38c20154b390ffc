"""Coverage-guided fuzzing of one target with atheris (libFuzzer):

    .venv/bin/python -m tests.fuzz.coverage_guided TARGET [CORPUS_FOLDER] [-max_total_time=SECONDS] [-seed=N] …

A crash is written to a file `crash-…` in the current folder; that file as the only argument runs it again.
"""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["vm0.vsock_proto", "vm0.vsock_guest", "vm0.vsock_host"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"{__doc__}\ntargets: {', '.join(TARGETS)}")
    logging.disable()
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
