"""Pixels in: finding and decoding films, the way between film and model frame, the body mask.

Nothing is imported here; take names from the modules (``decode``, ``locate``, ``geometry``, ``bodymask``).
"""
