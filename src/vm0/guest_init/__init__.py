"""PID 1 of the guest: file systems, names and network, then the guest endpoint as PID 2, then waiting for signals.

`parameters` reads the kernel's command line, `plan` says what a machine needs as a list that can be printed, `machine`
does it, `supervisor` keeps PID 2 alive and ends the machine. Standard library only and few imports: all of it is on the
way of a cold boot. Knows nothing of what the guest is for.
"""
