"""The command line: one small file a family of commands, and the one place where errors become exit codes."""
