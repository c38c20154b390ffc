"""Names and limits that every component agrees on: patterns of identifiers, sizes, well-known guest paths."""

from __future__ import annotations

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
UUID_MEANS = "a lower-case UUID"
SHA256 = r"[0-9a-f]{64}"
SHA256_MEANS = "64 lower-case hexadecimal digits"
GROUP = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?/[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
GROUP_MEANS = "two parts of lower-case letters, digits and hyphens, joined by a slash"
STORAGE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
STORAGE_NAME_MEANS = "1 to 128 letters, digits, dots, hyphens or underscores, not starting with a dot"
ENV_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
ENV_NAME_MEANS = "an identifier: letters, digits and underscores, not starting with a digit"
SESSION_ID = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
SESSION_ID_MEANS = "1 to 128 letters, digits, hyphens, dots or underscores, not starting with a dot"
# Absolute, no NUL, no empty, `.` or `..` components: the same path whatever it is joined to.
ABSOLUTE_PATH = r"(?:/(?!\.{1,2}(?:/|$))[^/\0]+)+"
ABSOLUTE_PATH_MEANS = "an absolute path without empty, `.` or `..` components"
TIME_ZONE = r"[A-Za-z0-9/_+-]{1,255}"

MAX_PROMPT_BYTES = 1024 * 1024
MAX_ENVIRONMENT_ENTRIES = 4096
MAX_ENVIRONMENT_BYTES = 512 * 1024  # execve takes 2 MiB of arguments and environment; the rest is for the CLI's own
MAX_FILE_BYTES = 100 * 1024 * 1024  # one file of an artifact, from the reference contract
MAX_FILES = 200_000  # entries of one artifact version
MAX_EVENTS_PER_POST = 500
MAX_HISTORY_BYTES = 128 * 1024 * 1024

DEFAULT_GROUP = "vm0/default"
DEFAULT_WORKING_DIR = "/home/user/workspace"
DEFAULT_TIMEOUT_SECONDS = 7200
