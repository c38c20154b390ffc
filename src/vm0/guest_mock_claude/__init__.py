"""A stand-in for Claude Code: takes its flags, runs the prompt with bash and speaks its stream-json.

For tests and demonstrations: no network, no model, and prompts that misbehave in every way a CLI can
(`scenarios.py` is the list).
"""
