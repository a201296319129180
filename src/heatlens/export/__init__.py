"""Boxes of a finished run in the formats that other programs read."""
