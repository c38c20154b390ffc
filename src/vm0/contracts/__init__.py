"""Every JSON body of the HTTP API, as frozen dataclasses that the guest, the runner and the server share.

Standard library only, because the guest imports it. `codec` turns a body into JSON and back and checks it:
what `decode` returns satisfies every limit written at the fields, so no other place validates again.
"""
