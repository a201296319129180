"""``heatlens doctor``: is everything here that a run needs, and are the weights the right ones?"""

from heatlens.doctor.command import main

__all__ = ["main"]
