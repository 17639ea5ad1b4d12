"""The mount: what a repository looks like as a file system (view), and its translation for the kernel."""
