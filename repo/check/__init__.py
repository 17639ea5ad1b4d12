"""Re-deriving what must hold: scrub (volumes), treecheck (references), engine (both, and the files that damage reaches)."""
