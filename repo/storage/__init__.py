"""Places that keep a repository's objects: the contract (base) and the local folder (local)."""
