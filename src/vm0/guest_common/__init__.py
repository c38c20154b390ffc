"""What the guest programs share: environment, log lines, timing records, the API client, secret masking.

Standard library only, and cheap to import: these programs start once per run, and the user waits for them.
"""
