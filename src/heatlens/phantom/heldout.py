"""Held-out findings to measure pointing on: films of seeds that neither training nor tuning has seen."""

from __future__ import annotations

from collections.abc import Iterator

from heatlens.phantom.film import SEEDS, Finding, PhantomFilm, make_film
from heatlens.phantom.language import prompt_for

Case = tuple[PhantomFilm, Finding, str]


def cases(n_findings: int, first_seed: int = SEEDS["held out"].start, *, long_side: int = 1200) -> Iterator[Case]:
    """Yield (film, finding, prompt) for the first `n_findings` findings of the films from `first_seed` on.

    Films are those of the demo's size; all findings of a film come one after another and share the film object.
    """
    seed, left = first_seed, n_findings
    while left > 0:
        film = make_film(seed, long_side=long_side)
        for finding in film.findings[:left]:
            yield film, finding, prompt_for(finding)
        left -= len(film.findings)
        seed += 1
