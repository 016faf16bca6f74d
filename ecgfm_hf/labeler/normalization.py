"""Brings reports to one way of writing: lower case, whole words for abbreviations, one word for each thing."""

import re
from collections.abc import Iterable, Mapping

from .literals import LEFT_BORDER, bordered_literals
from .normalization_tables import (
    CASE_SENSITIVE,
    CUT_LEADS,
    CUTS,
    FAMILIES,
    FINAL_PHRASES,
    LEAD_LISTS,
    LEADS,
    MISSPELLED,
    MISTYPED,
    PHRASE_PASSES,
    QUALIFIERS,
)

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# A slip that gives another word that reports use is no slip.
_WORDS_OF_THEIR_OWN = frozenset({"atria", "arial", "brunch", "bungle", "conducting", "place", "placed", "placing"})


class Normalizer:
    """
    Normalises reports for the matcher.

    Every step is linear in the length of the report: phrases are one regular expression a pass, and runs of white space
    are closed before anything looks around them. (Source: observed on the original; the
    order of the steps matters and follows it. One oddity is left out: a context of lead lists that occurs several times
    is not expanded several times over, which only repeats sentences, and would be quadratic.)

    Args:
        rewrites: phrases of the caller's own, as `{written: canonical}`, in lower case; read before the tables.

    Raises:
        ValueError: a phrase of `rewrites` is empty.
    """

    def __init__(self, rewrites: Mapping[str, str] | None = None) -> None:
        rewrites = {written.lower(): canonical.lower() for written, canonical in (rewrites or {}).items()}
        if any(not written.strip() for written in rewrites):
            raise ValueError("a phrase to rewrite must not be empty")
        leads = "|".join(sorted(LEADS, key=len, reverse=True))
        lead_list = rf"((?<!\w)(?:{leads})(?!\w)(?:[ ,]+(?:{leads})(?!\w))*)"
        self._cut = re.compile(
            f"(?:{'|'.join(CUT_LEADS)}){{0,3}}(?:{'|'.join(map(re.escape, sorted(CUTS, key=len, reverse=True)))})",
            re.IGNORECASE,
        )
        self._leads = re.compile(rf"(?<!\w)(?:{leads})(?!\w)")
        self._lead_lists = [
            (re.compile(LEFT_BORDER + context.replace("{leads}", lead_list)), sentence)
            for context, sentence in LEAD_LISTS
        ]
        self._capitals = _Phrases(CASE_SENSITIVE)
        self._slips = _slips()
        self._passes = [_Phrases(rewrites)] if rewrites else []
        self._passes += [_Phrases(_turned(table)) for table in PHRASE_PASSES]
        self._final = _Phrases(_turned(FINAL_PHRASES))
        qualifiers = "|".join(sorted(QUALIFIERS, key=len, reverse=True))
        self._trailing = re.compile(rf"(?:,| ?-) ?((?:(?:probabl|possibl)[ye] )?)({qualifiers})(?!\w)")
        self._families = [(words, re.compile(pattern), outcome) for words, pattern, outcome in FAMILIES]

    def __call__(self, report: str) -> str:
        """The normalised report; an empty string for what is no string (a missing report is NaN in a table)."""
        if not isinstance(report, str):
            return ""
        text = self._open(report)
        text = _SLIP.sub(self._mend, text)
        for phrases in self._passes:
            text = phrases(text)
        return self._close(_question_marks(text)).strip()

    def _mend(self, match: re.Match[str]) -> str:
        return self._slips.get(match[0], match[0])

    def _open(self, report: str) -> str:
        """Cuts what is about other recordings, resolves what needs capitals, and goes to lower case."""
        cut = self._cut.search(report)
        text = _SPACES.sub(" ", report[: cut.start()] if cut else report).strip()
        text = self._capitals(text)
        text = _SINUS_BLOCK.sub("sinus block", text)
        text = _FAILURE_TO.sub(_loss, _FAILURE_OF.sub(_loss, text))
        text = text.lower()
        if text.endswith((" normal", " abnormal", " borderline")):
            text += " ecg"
        text = text.replace("`", " ").replace("&", " and ")
        text = _SLASH.sub("/", text)
        text = _WAVES.sub(r"\1 wave\2", text)
        return _SPACES.sub(" ", text)

    def _close(self, text: str) -> str:
        """Sentences of the machines: lists of leads, and families of phrases."""
        text = self._final(text)
        if "lead" in text or "sequence error" in text:
            for context, sentence in self._lead_lists:
                text = context.sub(lambda match, sentence=sentence: self._one_a_lead(match, sentence), text)
        text = _SPLIT_CHAMBER.sub(r"\1\2", text).replace("*", " ")
        text = _INITIAL.sub(_chamber, text)
        text = _BUNDLE.sub("bundle branch", text)
        text = text.replace("-sensing", " sensing").replace("-pacing", " pacing")
        for words, pattern, outcome in self._families:
            if any(word in text for word in words):
                text = pattern.sub(outcome, text)
        return self._trailing.sub(_qualified, text)

    def _one_a_lead(self, match: re.Match[str], sentence: str) -> str:
        return "; ".join(sentence.format(lead=lead) for lead in self._leads.findall(match[1]))


class _Phrases:
    """One pass: every bordered phrase of a table, the longest at a position, replaced in one walk over the text."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = dict(table)
        self._regex = re.compile("|".join(bordered_literals(self._table)))

    def __call__(self, text: str) -> str:
        return self._regex.sub(self._canonical, text)

    def _canonical(self, match: re.Match[str]) -> str:
        return self._table[match[0]]


_SPACES = re.compile(r"\s+")
_SLIP = re.compile(r"(?<!\w)[a-z]{5,}(?!\w)")
_SLASH = re.compile(r" ?/ ?")
_WAVES = re.compile(r"(?<!\w)([a-z])[ -]?wave(s?)(?!\w)")
_SINUS_BLOCK = re.compile(
    r"(?:sino-?\s?atrial|s-?a|sinus)(?: node| nodal)?(?: exit)? block|sinus exit block", re.IGNORECASE
)
_FAILURE_TO = re.compile(
    r"failure to ()(capture|sense|track)(?:(?: and | or | and/or | ?/ ?)(capture|sense|track))?", re.IGNORECASE
)
_FAILURE_OF = re.compile(
    r"failure of (?:(atrial|ventricular) )?(capture|sensing)(?:(?: and | or | and/or | ?/ ?)(capture|sensing))?",
    re.IGNORECASE,
)
# Begins only where a run of marks does, so that a long run is walked once.
_ASKED_AGE = re.compile(r"(?<![-? ])[-? ]++(?=age(?!\w))")
_ASKED_AFTER = re.compile(r" ?(?<!-)--?\? ?")
_COMMA = re.compile(r",(?=[^\s])")
_SPLIT_CHAMBER = re.compile(r"(?<!\w)(supra|intra|inter)(?:- | -|-| )(ventricular|atrial)(?!\w)")
_INITIAL = re.compile(r"(?<!\w)([va])- ?(?=[a-z]{2})")
_BUNDLE = re.compile(r"(?<!\w)bundle(?! branch)(?!\w)")


def _loss(match: re.Match[str]) -> str:
    chamber = f"{match[1].lower()} " if match[1] else ""
    lost = ["capture" if word.lower() == "capture" else "sensing" for word in match.groups()[1:] if word]
    return "; ".join(f"loss of {chamber}{word}" for word in dict.fromkeys(lost))


def _question_marks(text: str) -> str:
    text = text.replace(" present ", " ")
    if "?" in text:
        text = _ASKED_AGE.sub(_asked, text)
        if text.lstrip().startswith("?"):
            text = "<before?> " + text.lstrip()[1:]
        text = _ASKED_AFTER.sub(" <after?> ", text)
    return _SPACES.sub(" ", _COMMA.sub(", ", text)).strip()


def _asked(match: re.Match[str]) -> str:
    return " ? " if "?" in match[0] else match[0]


def _chamber(match: re.Match[str]) -> str:
    return "ventricular " if match[1] == "v" else "atrial "


def _qualified(match: re.Match[str]) -> str:
    doubt = {"": "", "possible ": "possibly ", "probable ": "probably "}.get(match[1], match[1])
    return f", {doubt}{match[2]}"


def _turned(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {written: canonical for canonical, surface in table.items() for written in surface}


def _slips() -> dict[str, str]:
    """Mistyped words and what they mean: all that are one slip of the keyboard away, and those that are listed."""
    words = MISTYPED.split()
    mended = {slip: word for word in words for slip in _one_slip(word)}
    mended.update({slip: word for word, slips in MISSPELLED.items() for slip in slips})
    return {slip: word for slip, word in mended.items() if slip not in words and slip not in _WORDS_OF_THEIR_OWN}


def _one_slip(word: str) -> Iterable[str]:
    for index in range(len(word) - 1):
        yield word[:index] + word[index + 1] + word[index] + word[index + 2 :]
        yield word[: index + 1] + word[index] + word[index + 1 :]
        if index:  # Without its first or last letter a word is often another one ("trial", "atria").
            yield word[:index] + word[index + 1 :]
            for key in _neighbours(word[index]):
                yield word[:index] + key + word[index + 1 :]


def _neighbours(letter: str) -> str:
    found = ""
    for number, row in enumerate(_KEYBOARD):
        at = row.find(letter)
        if at >= 0:
            found += row[max(at - 1, 0) : at] + row[at + 1 : at + 2]
            for other in _KEYBOARD[max(number - 1, 0) : number] + _KEYBOARD[number + 1 : number + 2]:
                found += other[max(at - 1, 0) : at + 2]
    return found
