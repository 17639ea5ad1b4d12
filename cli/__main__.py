"""`python -m snapfs.cli` is the command `snapfs`."""

from snapfs.cli.start import main

main()
