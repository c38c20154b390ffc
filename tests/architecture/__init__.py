"""The house rules that a machine can check: dependencies, sizes, names, docstrings."""
