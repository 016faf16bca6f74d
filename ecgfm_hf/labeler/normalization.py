"""Normalise reports: lower case, whole words for abbreviations, one word for each thing."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from .matching import LEFT_BORDER, bordered_literals
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
    NOTICES,
    PHRASE_PASSES,
    QUALIFIERS,
)

_FEW = 20
_VOWELS = "aeiouy"
_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# A typing error that gives another word of reports is no error.
_WORDS_OF_THEIR_OWN = frozenset(
    {"atria", "arial", "brunch", "bungle", "conducting", "literal", "place", "placed", "placing"}
)


class Normalizer:
    """
    Normalise reports for the matcher.

    Every step is linear in the length of the report: phrases are one regular expression a pass, and runs of white space
    are closed before anything looks around them. (Source: observed on the original; the
    order of the steps matters and follows it. One oddity is left out: a context of lead lists that occurs several times
    is not expanded several times over, which only repeats sentences, and would be quadratic.)

    Args:
        rewrites: phrases to replace, as `{written: canonical}`, in lower case; applied before the tables.
        mistyped: words in which typing errors are corrected, in addition to the tables'.

    Raises:
        ValueError: a phrase of `rewrites` is empty.
    """

    def __init__(self, rewrites: Mapping[str, str] | None = None, mistyped: Iterable[str] = ()) -> None:
        rewrites = {written.lower(): canonical.lower() for written, canonical in (rewrites or {}).items()}
        if any(not written.strip() for written in rewrites):
            raise ValueError("a phrase to rewrite must not be empty")
        leads = "|".join(sorted(LEADS, key=len, reverse=True))
        lead_list = rf"((?<!\w)(?:{leads})(?!\w)(?:[ ,]+(?:{leads})(?!\w))*)"
        self._leads = re.compile(rf"(?<!\w)(?:{leads})(?!\w)")
        self._lead_lists = [
            (re.compile(LEFT_BORDER + context.replace("{leads}", lead_list)), sentence)
            for context, sentence in LEAD_LISTS
        ]
        self._capitals = _Phrases(CASE_SENSITIVE)
        self._slips = _slips([*MISTYPED.split(), *mistyped])
        self._passes = [_Phrases(rewrites)] if rewrites else []
        self._passes += [_Phrases(_turned(table)) for table in PHRASE_PASSES]
        self._final = _Phrases(_turned(FINAL_PHRASES))
        qualifiers = "|".join(sorted(QUALIFIERS, key=len, reverse=True))
        self._trailing = re.compile(rf"(?:,| ?-) ?((?:(?:probabl|possibl)[ye] )?)({qualifiers})(?!\w)")
        self._families = [
            (re.compile(sign).search, [(re.compile(rf"\b{pattern}(?!\w)"), outcome) for pattern, outcome in rules])
            for sign, rules in FAMILIES
        ]

    def __call__(self, report: str | None) -> str:
        """Return the normalised report; an empty string for one that is no string (None, or NaN in a table)."""
        if not isinstance(report, str):
            return ""
        text = self._open(report)
        if not self._slips.keys().isdisjoint(_WORD.findall(text)):
            text = _WORD.sub(self._mend, text)
        for phrases in self._passes:
            text = phrases(text)
        return self._close(_question_marks(text)).strip()

    def _mend(self, match: re.Match[str]) -> str:
        return self._slips.get(match[0], match[0])

    def _open(self, report: str) -> str:
        """Cut text about other recordings, resolve abbreviations in capitals, and go to lower case."""
        text = self._capitals(_one_space(_cut(report))).lower()
        if "block" in text:
            text = _SINUS_BLOCK.sub("sinus block", text)
        if "failure " in text:
            text = _FAILURE_TO.sub(_loss, _FAILURE_OF.sub(_loss, text))
        if text.endswith((" normal", " abnormal", " borderline")):
            text += " ecg"
        text = text.replace("`", " ").replace("&", " and ")
        if "/ " in text or " /" in text:
            text = _SLASH.sub("/", text)
        if "wave" in text:
            text = _WAVES.sub(r"\1 wave\2", text)
        return _one_space(text)

    def _close(self, text: str) -> str:
        """Replace sentences of the machines: lists of leads, and families of phrases."""
        text = self._final(text)
        if "without know" in text or "suspected" in text:
            text = _NOTICE.sub("", text)
        if "lead" in text or "sequence error" in text:
            for context, sentence in self._lead_lists:
                text = context.sub(functools.partial(self._one_a_lead, sentence), text)
        if _PARTED.search(text):
            text = _SPLIT_CHAMBER.sub(r"\1\2", text)
        text = text.replace("*", " ")
        if "v-" in text or "a-" in text:
            text = _INITIAL.sub(_chamber, text)
        if "bundle" in text:
            text = _BUNDLE.sub("bundle branch", text)
        text = text.replace("-sensing", " sensing").replace("-pacing", " pacing")
        for sign, rules in self._families:
            if sign(text):
                for pattern, outcome in rules:
                    text = pattern.sub(outcome, text)
        return self._trailing.sub(_qualified, text)

    def _one_a_lead(self, sentence: str, match: re.Match[str]) -> str:
        return "; ".join(sentence.format(lead=lead) for lead in self._leads.findall(match[1]))


class _Phrases:
    """One pass: every bordered phrase of a table, the longest at a position, replaced in one walk over the text."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = dict(table)
        self._regex = re.compile("|".join(bordered_literals(self._table)))
        # To look for a few phrases first, borders aside, costs less than to walk over a text that has none of them.
        self._few = tuple(self._table) if len(self._table) <= _FEW else ()

    def __call__(self, text: str) -> str:
        for phrase in self._few:
            if phrase in text:
                break
        else:
            if self._few:
                return text
        return self._regex.sub(self._canonical, text)

    def _canonical(self, match: re.Match[str]) -> str:
        return self._table[match[0]]


_PARTED = re.compile("(?:supra|intra|inter)[- ]")
_NOTICE = re.compile(rf"(?<!\w)(?:{'|'.join(NOTICES)})(?!\w)")
_WORD = re.compile(r"(?<!\w)[a-z]{5,}(?!\w)")
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


def _cut(report: str) -> str:
    """Return the report up to its first mention of a signature or of another recording."""
    lowered = report.lower()
    if len(lowered) != len(report):  # A few capitals of other scripts become two characters.
        report = lowered
    found = [at for at in map(lowered.find, CUTS) if at >= 0]
    if not found:
        return report
    end = min(found)
    while lead := next((words for words in CUT_LEADS if lowered.endswith(words, 0, end)), None):
        end -= len(lead)
    return report[:end]


def _one_space(text: str) -> str:
    return " ".join(text.split())


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
    return _one_space(_COMMA.sub(", ", text))


def _asked(match: re.Match[str]) -> str:
    return " ? " if "?" in match[0] else match[0]


def _chamber(match: re.Match[str]) -> str:
    return "ventricular " if match[1] == "v" else "atrial "


def _qualified(match: re.Match[str]) -> str:
    doubt = {"": "", "possible ": "possibly ", "probable ": "probably "}.get(match[1], match[1])
    return f", {doubt}{match[2]}"


def _turned(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {written: canonical for canonical, surface in table.items() for written in surface}


def _slips(words: Sequence[str]) -> dict[str, str]:
    """Return mistyped words and their corrections: all words one typing error away, and the listed ones."""
    mended = {slip: word for word in words for slip in _one_slip(word)}
    mended.update({slip: word for word, slips in MISSPELLED.items() for slip in slips})
    return {slip: word for slip, word in mended.items() if slip not in words and slip not in _WORDS_OF_THEIR_OWN}


def _one_slip(word: str) -> Iterable[str]:
    for index in range(len(word) - 1):
        yield word[:index] + word[index + 1] + word[index] + word[index + 2 :]
        yield word[: index + 1] + word[index] + word[index + 1 :]
        if index:  # Without its first or last letter a word is often another one ("trial", "atria").
            yield word[:index] + word[index + 1 :]
            for key in _neighbours(word[index]) + (_VOWELS if word[index] in _VOWELS else ""):
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
