"""Mending what can be mended: volumes (what still opens, stored anew), snapshots (without what is lost).  Nothing is deleted."""
