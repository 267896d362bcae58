"""Texts that are no language: nothing but signs, one sign again and again, encoded data, bare addresses.

Only what says nothing at all is left out. "ok", "42" as an answer, code and tables stay.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from daemon.rules import checked
from daemon.rules.wording import count_words

DEFAULTS: dict[str, Any] = {
    "min_words": 2,
    "only_signs": True,
    "only_addresses": True,
    "repeated_signs": 5,
    "letter_share": 0.25,
    "blob_signs": 32,
    "blob_share": 0.5,
}

_ADDRESS = re.compile(r"<?\b(?:https?://|www\.)\S+")
_RUN = re.compile(r"[A-Za-z0-9+/_=-]{16,}")
# Thai, Lao, Tibetan, Burmese, Khmer: no spaces between words, and no sign that is one.
_UNSPACED = re.compile(r"[฀-໿ༀ-࿿က-႟ក-៿]")
_FEW = 40  # signs; the share of letters of a shorter text says nothing


@dataclass(frozen=True)
class LanguageRules:
    min_words: int  # a text that answers nothing has at least these many words with a letter in them
    only_signs: bool  # leave out what is nothing but emoji and punctuation
    only_addresses: bool  # leave out what is nothing but web addresses
    repeated_signs: int  # one letter this many times and nothing else; 0 for never
    letter_share: float  # of all signs but spaces, in a text of some length
    blob_signs: int  # an unbroken run of base64 or hex digits of at least this length ...
    blob_share: float  # ... and such runs make up this share of the text

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Self:
        """The checked table `[skip]`, which has other keys as well. ValueError, one sentence."""
        return cls(
            min_words=checked.whole(table, "skip.min_words", 0, 1000),
            only_signs=checked.flag(table, "skip.only_signs"),
            only_addresses=checked.flag(table, "skip.only_addresses"),
            repeated_signs=checked.whole(table, "skip.repeated_signs", 0, 1000),
            letter_share=checked.number(table, "skip.letter_share", 0.0, 1.0),
            blob_signs=checked.whole(table, "skip.blob_signs", 16, 100_000),
            blob_share=checked.number(table, "skip.blob_share", 0.0, 1.0),
        )


def why_no_language(text: str, rules: LanguageRules, *, answers: bool) -> str | None:
    """Why nothing can be learnt of this text; None where something can.

    `answers`: it answers a question, so that a bare number or a single word may say all.
    """
    if not any(map(str.isalnum, text)):
        return "nothing but emoji or punctuation" if rules.only_signs else None
    linked = rules.only_addresses and ("://" in text or "www." in text)
    if linked and not any(map(str.isalnum, _ADDRESS.sub("", text))):
        return "nothing but web addresses"
    if rules.repeated_signs and _is_one_letter(text, rules.repeated_signs):
        return "the same letter again and again"
    if rules.min_words and not answers and not any(map(str.isalpha, text)):
        return "no words, only numbers and signs"
    if _letter_share(text, answers) < rules.letter_share:
        return "hardly any letters"
    if _blob_signs(text, rules.blob_signs) > rules.blob_share * len(text):
        return "a block of encoded data"
    if not answers and len(text) < 40 * rules.min_words and _words(text) < rules.min_words:
        return "too short"
    return None


def _is_one_letter(text: str, times: int) -> bool:
    """ "aaaaaa", "hmmmm" not: one letter alone, with or without signs around it."""
    if len(set(text[:60])) > 8:
        return False
    said = [sign for sign in text.casefold() if sign.isalnum()]
    return len(said) >= times and said[0].isalpha() and len(set(said)) == 1


def _letter_share(text: str, answers: bool) -> float:
    """Letters among all signs but spaces; of an answer digits count too. 1.0 where the text begins with words."""
    head = text[:80]
    if len(text) < _FEW or sum(map(str.isalpha, head)) * 2 > len(head):
        return 1.0
    signs = "".join(text.split())
    counted = sum(map(str.isalnum if answers else str.isalpha, signs)) + len(_UNSPACED.findall(signs))
    return counted / len(signs)


def _words(text: str) -> int:
    """Words with a letter in them; in scripts without spaces three signs count as one."""
    unspaced = len(_UNSPACED.findall(text)) // 3
    return unspaced + sum(count_words(word) for word in text.split() if any(map(str.isalpha, word)))


def _blob_signs(text: str, least: int) -> int:
    """Signs in runs of base64 or hex digits. Words, paths and long names are none."""
    if max(map(len, text.split())) < least:
        return 0
    if "://" in text or "www." in text:
        text = _ADDRESS.sub("", text)
    total = 0
    for found in _RUN.finditer(text):
        run = found[0]
        if len(run) < least or max(map(len, re.split(r"[/_-]", run))) < 20:
            continue
        if any(map(str.isdigit, run)) and any(map(str.isalpha, run)):
            total += len(run)
    return total
