"""Packs the guest programs into one file, `guest.pyz`, that any CPython from 3.11 on runs with `-I -S`.

python3 -I -S guest.pyz vsock-guest|guest-init|guest-agent|guest-download|guest-mock-claude …
"""

from __future__ import annotations

from vm0.guest_bundle.build import BundleError, GuestBundle, build_bundle

__all__ = ["BundleError", "GuestBundle", "build_bundle"]
