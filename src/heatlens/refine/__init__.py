"""Maps refined by what the film shows: edges."""
