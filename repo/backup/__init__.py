"""Backing up: patterns (what is left out), sources (where to begin), nodes and files (what is read), engine
(the one pipeline)."""
