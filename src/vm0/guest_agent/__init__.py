"""Runs the agent CLI of one run and tells the control plane about it: events, heartbeat, telemetry, checkpoint.

One rule above all: nothing here may hold up the CLI. Its output is read by threads that touch memory and local files
only; whatever talks to the network works from bounded queues and files, in threads of its own.
"""
