"""One CAM method per file; names are in :mod:`heatlens.registry`."""
