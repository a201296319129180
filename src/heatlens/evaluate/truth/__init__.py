"""Where findings are, according to whom: one file per annotation format, found by its name in the registry."""
