"""A program that stands in for QEMU: what `sandbox_qemu` relies on of it, without a machine, in a few milliseconds.

It is started as the real one is (its arguments, its descriptors, an unprivileged user in a namespace), speaks QMP, and
is a guest at the other end of the link. What the real one would refuse it refuses, and what only a test can see it
checks: that it was given no descriptor, right or user more than it needs. `faults` says how it misbehaves.

`arguments` is its command line, `machine` its memory and device state, `monitor` QMP, `guest` the guest, `main` the
loop: all of it runs under `python -I -S`, so it imports little. `installation` puts it where any user can run it.
"""
