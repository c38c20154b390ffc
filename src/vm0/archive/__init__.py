"""Folders as archives: `scan` lists one, `pack` makes a `tar.gz` of the list, `extract` unpacks one that nobody trusts.

A leaf: standard library only, the same on the host and in the guest. Import the functions from their modules.
"""
