"""The mount: what a repository looks like as a file system (view), its translation for the kernel (operations), start, stop."""
