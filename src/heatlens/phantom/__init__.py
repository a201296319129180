"""The demo: a chest film generator with exact masks, a data set writer, and a small CLIP trained on its films."""
