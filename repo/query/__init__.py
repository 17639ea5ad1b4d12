"""Asking snapshots: compare (two of them, or one and a live folder), find, stats, dump (a file, or a folder as tar)."""
