"""Bytes <-> values.

Pure functions: no files, no clock, no randomness (salts are passed in).  docs/format.md is their
specification.
"""
