"""What is said about phantom films: claims, their wording, and whether a claim is true of a film.

A `Claim` is the meaning of a caption or question ("a nodule in the left lung"). It is true of a film when one
of the film's findings fits it. Training uses that truth instead of "caption j belongs to film i": two films
with a left effusion are both right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from heatlens.phantom.findings import NAMES, ZONES

CONTEXT_LENGTH = 64
"""tokens that the text tower reads"""
SYNONYMS = {
    "endotracheal tube": ("et tube", "ett", "breathing tube"),
    "nasogastric tube": ("ng tube", "enteric tube", "feeding tube"),
    "pacemaker": ("pacemaker generator", "cardiac device", "pacing device"),
    "nodule": ("lung nodule", "pulmonary nodule", "round opacity"),
    "consolidation": ("lung consolidation", "airspace opacity", "pneumonia"),
    "pleural effusion": ("effusion", "pleural fluid", "fluid"),
    "pneumothorax": ("air in the pleural space", "collapsed lung", "pleural air"),
    "enlarged heart": ("cardiomegaly", "enlarged cardiac silhouette", "big heart"),
}
QUESTIONS = (
    "where is the {}?", "is there a {}?", "where is the {} located?", "where can the {} be seen?",
    "which region shows the {}?", "is a {} present?", "how large is the {}?", "how severe is the {}?",
    "what is the size of the {}?", "find the {}.",
    "show the {}.", "is the {} on this film?",
)  # fmt: skip
STATEMENTS = (
    "{}", "{}", "{}", "a {}", "there is a {}.", "the {}", "chest film with {}",
    "frontal chest x-ray showing {}", "{} is seen",
)  # fmt: skip
ABNORMALITY = (
    "what abnormality is seen in the {}?", "what is seen in the {}?", "is there an abnormality in the {}?",
    "which finding is in the {}?", "abnormality in the {}", "is the {} normal?", "{}",
)  # fmt: skip
OPEN_ENDED = (
    "which of these are seen on this film?", "what are the findings on this film?", "what does this film show?",
    "which abnormality is seen?", "what is abnormal?",
)  # fmt: skip


class Placed(Protocol):
    """Anything with a finding's name and place."""

    @property
    def name(self) -> str: ...
    @property
    def side(self) -> str: ...
    @property
    def zone(self) -> str: ...
    @property
    def region(self) -> str: ...


@dataclass(frozen=True)
class Claim:
    """A statement about a film; "" leaves a field open."""

    name: str = ""
    side: str = ""
    zone: str = ""
    region: str = ""

    def fits(self, finding: Placed) -> bool:
        """Is this finding what the claim speaks of?"""
        return all(
            wanted in ("", actual)
            for wanted, actual in (
                (self.name, finding.name), (self.side, finding.side),
                (self.zone, finding.zone), (self.region, finding.region),
            )
        )  # fmt: skip

    def true_of(self, findings: Iterable[Placed]) -> bool:
        """Is the claim true of a film with these findings?"""
        return any(self.fits(finding) for finding in findings)


def place_of(finding: Placed) -> str:
    """Where the finding is, in words: "left lower lung zone", "left upper chest", or "" where that goes
    without saying."""
    if finding.name == "pacemaker":
        return f"{finding.side} upper chest"
    return f"{finding.side} {finding.zone} lung zone" if finding.side else ""


def prompt_for(finding: Placed) -> str:
    """The prompt that asks for one finding: "endotracheal tube", "nodule in the left lower lung zone"."""
    place = place_of(finding)
    return f"{finding.name} in the {place}" if place else finding.name


def question_for(finding: Placed) -> str:
    """The demo's question about one finding; its region follows it in the default prompt."""
    return f"Where is the {finding.name}?"


def claim_about(finding: Placed, rng: np.random.Generator) -> Claim:
    """A true claim about a finding, more or less specific."""
    if not finding.side:
        return Claim(finding.name, region=finding.region if rng.random() < 0.3 else "")
    level = rng.random()
    if level < 0.45:
        return Claim(finding.name, finding.side, finding.zone)
    if level < 0.65:
        return Claim(finding.name, finding.side)
    if level < 0.70:
        return Claim(finding.name, zone=finding.zone)
    if level < 0.88:
        return Claim(finding.name)
    return Claim("", finding.side, finding.zone, finding.region)


def twist(claim: Claim, rng: np.random.Generator) -> Claim:
    """A claim that differs in one thing: the other side, another zone, another finding. (It may be true as
    well: ask `true_of`.)"""
    options = [Claim(str(rng.choice(NAMES)), claim.side, claim.zone)] if claim.name else []
    if claim.side:
        other = "left" if claim.side == "right" else "right"
        options += [Claim(claim.name, other, claim.zone, claim.region.replace(claim.side, other))] * 2
    if claim.zone and claim.name not in ("pacemaker", "pleural effusion", "pneumothorax"):
        zone = str(rng.choice([z for z in ZONES if z != claim.zone]))
        options.append(Claim(claim.name, claim.side, zone, claim.region.replace(claim.zone, zone)))
    return options[int(rng.integers(len(options)))] if options else Claim(str(rng.choice(NAMES)))


def word(claim: Claim, rng: np.random.Generator) -> str:
    """One way to put a claim: a caption, a question, or a question followed by its region."""
    place = _place_words(claim, rng)
    if not claim.name:
        if rng.random() < 0.15:
            return f"{_pick(OPEN_ENDED, rng)} {place}"
        return _pick(ABNORMALITY, rng).format(place)
    name = claim.name if rng.random() < 0.6 else _pick(SYNONYMS[claim.name], rng)
    if rng.random() < 0.5:
        return _pick(STATEMENTS, rng).format(_join(name, place, claim, rng))
    question = _pick(QUESTIONS, rng)
    if place and rng.random() < 0.6:  # the default prompt of a run: {question} {region}
        return f"{question.format(name)} {place}"
    return question.format(_join(name, place, claim, rng))


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _join(name: str, place: str, claim: Claim, rng: np.random.Generator) -> str:
    if not place:
        return name
    if claim.side and not claim.zone and rng.random() < 0.6:
        return f"{claim.side} {name}" if rng.random() < 0.6 else f"{name} on the {claim.side}"
    return f"{name} in the {place}"


def _place_words(claim: Claim, rng: np.random.Generator) -> str:
    if claim.region and not (claim.side and rng.random() < 0.3):
        return claim.region
    if claim.name == "pacemaker" and claim.side:
        return f"{claim.side} clavicle" if rng.random() < 0.5 else f"{claim.side} {claim.zone} chest".replace("  ", " ")
    if claim.side and claim.zone:
        return f"{claim.side} {claim.zone} lung zone"
    if claim.zone:
        return f"{claim.zone} lung zone"
    return f"{claim.side} lung" if claim.side else ""


def vocabulary() -> list[str]:
    """The WordPiece vocabulary: special tokens, every word of the phantom language, common words, and single
    characters.

    With the characters any lower-case Latin text can be spelled, so a foreign word becomes letters and never
    needs a download.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    phrases = [
        *NAMES,
        *(s for group in SYNONYMS.values() for s in group),
        *QUESTIONS,
        *STATEMENTS,
        *ABNORMALITY,
        *OPEN_ENDED,
    ]
    phrases += [
        "upper mid lower lung zone left right clavicle chest trachea mediastinum cardiac region on in the",
        _COMMON,
    ]
    clean = "".join(c if c.isalnum() else " " for c in " ".join(phrases).lower())
    words = sorted({w for w in clean.split() if len(w) > 1})
    characters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    letters = [c for c in characters if c.isalnum()]
    return (
        special
        + characters
        + [f"##{c}" for c in letters]
        + [f"##{e}" for e in ("s", "es", "ed", "ing", "al", "ar") if len(e) > 1]
        + words
    )


_COMMON = """
about above abnormal abscess acute after air airway all also and angle aorta aortic apex apical any are area as
at atelectasis be because been before below best between bilateral blunted bone border both bronchus but by
calcified can cardiomediastinal carina catheter central change changes chest choices chronic clear costophrenic
could describe device diaphragm diffuse disease does dome doctor edema effusions emphysema evidence few
fibrosis finding findings following for fracture from front granuloma has have heart hemidiaphragm hernia hilar
hilum how if image in increased infiltrate into is it its joint kind knob large lateral lead left lesion level
likely line lines lobe location lung lungs main major mark marked mass may medial mild minor moderate more most
near no nodules normal not of on one opacities opacity or other out over part patient picc pleura port portion
position possible present pulmonary radiograph region regions rib ribs right scar scoliosis see seen severe
shadow shift should shoulder show shows side sides sign silhouette size small so spine sternal stomach
structure structures subtle surgical svc swelling tell than that their there these they thickening this tip to
too tubes type under unremarkable up upper vascular vein vena venous vertebra visible was well what when where
which while who why wide wires with within without would x-ray yes you
""".replace("\n", " ")
