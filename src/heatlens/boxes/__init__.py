"""From a map to boxes: threshold, connected regions, ranking, padding. Pure numbers: no files, no model, no colours."""
