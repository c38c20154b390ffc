"""The `vm0` command: runs agents, starts servers and runners, and shows what they did.

stdout is data and stderr is talk. `app` declares the commands and imports nothing heavy; what a command does is in the
module of its noun and is imported when the command is called.
"""
