"""The wire protocol between host and guest: pure bytes in, messages out. Both sides use it; it does no I/O.

`messages` is the table, `codec` its fields, `framing` the frames, `connection` one end of a link, `flow` the credit,
`errors` what can go wrong.
"""
