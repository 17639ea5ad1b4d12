"""From a folder to a snapshot: walk the source (scan), cut its files (chunker), store what is new (engine)."""
