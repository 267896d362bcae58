"""Words, sentences and paragraphs of any text: counting them, cutting after them, splitting between them."""

import re
from collections.abc import Iterator

# A word, or one character of a script that puts no spaces between its words.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯]|[^\s぀-ヿ㐀-䶿一-鿿가-힯]+")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s|$)|[。！？]+[”’」』）]*|\n(?=\s*\S)")
_CLAUSE_END = re.compile(r"[,;:](?=\s)|\s[-–—](?=\s)|[，、；：]")
_NO_END = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|no|vol|fig|approx|dept|est|inc|ltd|co|e\.g|i\.e|a\.m|p\.m|u\.s)"
    r"|\b[A-Za-z])\.$",
    re.IGNORECASE,
)
_INITIAL_I = re.compile(r"\bI\.$")  # "so do I." ends a sentence; "J. Smith" does not
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")


def count_words(text: str) -> int:
    return sum(1 for _ in _WORD.finditer(text))


def sentence_ends(text: str) -> Iterator[int]:
    """Where sentences end, as offsets. The end of the text is always the last one."""
    for found in _SENTENCE_END.finditer(text):
        tail = text[max(0, found.start() - 8) : found.end()]
        if found[0] == "." and _NO_END.search(tail) and not _INITIAL_I.search(tail):
            continue
        if found.end() < len(text):
            yield found.end()
    yield len(text)


def cut_at_sentence(text: str, most_words: int) -> str:
    """As many whole sentences as fit into `most_words`, at least one.

    Where the first sentence alone is far too long (twice the limit: a list, a dump), it is cut at its
    last clause that fits, else at a word. The result is never empty if the text is not.
    """
    ends = [found.end() for found in _WORD.finditer(text)]
    if len(ends) <= most_words:
        return text
    fits = ends[most_words - 1]
    last = 0
    for end in sentence_ends(text):
        if len(text[:end].rstrip()) > fits:
            first = end
            break
        last = end
    else:  # unreachable: the end of the text does not fit
        return text
    if text[:last].strip():
        return text[:last].rstrip()
    if count_words(text[:first]) <= 2 * most_words:
        return text[:first].rstrip()
    clauses = [found.start() for found in _CLAUSE_END.finditer(text, 0, fits)]
    if clauses and clauses[-1] > fits // 2:
        return text[: clauses[-1]].rstrip()
    return text[:fits]


def last_sentence(text: str, most_words: int = 40) -> str:
    """The end of a text, for a prompt that asks how it went on."""
    text = text.rstrip()
    ends = [0, *sentence_ends(text)]
    sentence = text[ends[-2] :].strip() or text
    words = [found.start() for found in _WORD.finditer(sentence)]
    return sentence if len(words) <= most_words else sentence[words[-most_words] :]


def split_text(text: str, about_words: int) -> list[str]:
    """Pieces of about that many words, split at paragraph ends, in a long paragraph at sentence ends.

    Nothing is left out but the white space between pieces. A sentence is never split.
    """
    pieces: list[str] = []
    current, size = "", 0
    for gap, part in _parts(text, about_words):
        words = count_words(part)
        if current and size + words > about_words:
            pieces.append(current)
            current, size = part, words
        else:
            current, size = current + gap + part if current else part, size + words
    if current:
        pieces.append(current)
    return pieces


def _parts(text: str, about_words: int) -> Iterator[tuple[str, str]]:
    """(what stands before it, part): paragraphs, and sentences where a paragraph is too long."""
    for paragraph in _PARAGRAPH.split(text.strip()):
        if count_words(paragraph) <= about_words:
            if paragraph.strip():
                yield "\n\n", paragraph.rstrip()
            continue
        start, gap = 0, "\n\n"
        for end in sentence_ends(paragraph):
            sentence = paragraph[start:end]
            if sentence.strip():
                yield gap, sentence.strip()
                gap = "\n" if paragraph[end : end + 1] == "\n" or sentence.endswith("\n") else " "
            start = end
