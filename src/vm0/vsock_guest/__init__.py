"""The agent in the guest that carries out what the host asks for: commands, files, power, restore.

One thread runs one `select.epoll` loop that never waits for user work: commands are children watched by pidfd and
pipes, file transfers have worker threads. `server` is the map from messages to operations, `command` one command,
`files` one transfer, `link` the connection, `transport` how it is made, `power` what happens to the whole guest.
Standard library only and few imports: it starts in well under 60 ms and runs as PID 2 of a VM.
"""
