"""Pixels out: colour tables, blending, encoding."""
