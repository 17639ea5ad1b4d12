"""Volumes that no snapshot needs are removed, and those that few need are rewritten."""
