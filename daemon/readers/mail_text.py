"""What the sender of a mail wrote in it: the body's text without quotes, forwarded parts and signatures.

Everything here is linear in the text: mails are written by anybody. The quote marks are those that Gmail,
Apple Mail, Outlook, Thunderbird, Yahoo and Proton write, in the languages in which they are common. A closing
("Best, Anna") stays, since it is the person's own; a reply that begins with "Thanks," must not end there.
"""

import html
import re
from email.message import Message
from typing import Any

from daemon.readers.markdown import without_spans

LONGEST_HTML = 1 << 20  # characters; more is no letter
LONGEST_SIGNATURE = 12  # lines after a "--" that lost its space

_UNSAFE_CODECS = frozenset(("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"))
_WIDER = {"iso-8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030",
          "ks_c_5601-1987": "cp949", "euc-kr": "cp949", "shift_jis": "cp932"}  # fmt: skip

_VERBS = (
    r"wrote|writes|schrieb|schreibt|a écrit|escribió|ha scritto|scrive|escreveu|schreef|skrev|napisał(?:\(?a\)?)?"
    r"|napsal(?:\(?a\)?)?|kirjoitti|írta|a scris|написал(?:\(?а\)?)?|пишет|пише|писал(?:\(?а\)?)?|yazdı|写道|寫道"
)
_WROTE = re.compile(rf"(?:{_VERBS})\b.{{0,120}}[:：]$", re.IGNORECASE)
_EXACT = re.compile(r"@|\d[:h]\d\d")
_DAY = re.compile(r"\b(?:19|20)\d\d\b|\d[./-]\d{1,2}[./-]\d\d")
_ADDRESSED = re.compile(r"\d[:h]\d\d[^@\n]{0,80}<[^@\s<>]{1,80}@[^@\s<>]{1,80}>\)?\s?:$")  # no verb: Russian
_OPENING = re.compile(
    r"(?:On|Am|Le|El|Il|Em|Op|Den|Dne|Dnia|W dniu|På|Mon|Tue|Wed|Thu|Fri|Sat|Sun|\d{1,4}[./-])\b|[^<\s]\S*@"
)
_SEPARATOR = re.compile(
    r"[-_*>\s]{0,40}(?:Original Message|Original-Nachricht|Ursprüngliche Nachricht|Message d'origine|Message original"
    r"|Mensaje original|Messaggio originale|Mensagem original|Oorspronkelijk bericht|Oprindelig meddelelse"
    r"|Ursprungligt meddelande|Opprinnelig melding|Исходное сообщение|Forwarded message|Forwarded Message"
    r"|Weitergeleitete Nachricht|Message transféré|Mensaje reenviado|Messaggio inoltrato|Mensagem encaminhada"
    r"|Doorgestuurd bericht|Пересылаемое сообщение|Begin forwarded message|Anfang der weitergeleiteten Nachricht"
    r"|Début du message réexpédié|Inizio messaggio inoltrato)[-_*:\s]{0,40}",
    re.IGNORECASE,
)
_FROM = re.compile(r"\*?(?:From|Von|De|Da|Från|Fra|Van|Od|От|发件人|寄件者|差出人)\s?[:：]\*?\s?\S")
_FIELD = re.compile(
    r"\*?(?:Sent|Date|To|Subject|Cc|Reply-To|Gesendet|Datum|An|Betreff|Envoyé|À|A|Objet|Enviado(?: el)?|Fecha|Para"
    r"|Asunto|Inviato|Data|Oggetto|Assunto|Verzonden|Aan|Onderwerp|Skickat|Till|Ämne|Sendt|Til|Emne|Wysłano|Do|Temat"
    r"|Odesláno|Komu|Předmět|Дата|Кому|Тема|发送时间|日期|收件人|主题|送信日時|宛先|件名)\s?[:：]"
)
_SENT_FROM = re.compile(
    r"(?:Sent from (?:my |Yahoo|Mail |Outlook|Proton|Samsung)|Sent (?:with|via) \S|Get Outlook for |Von meinem .{2,30} "
    r"gesendet|Gesendet (?:mit|von|über) |Diese Nachricht wurde von meinem .{2,40} gesendet|Envoyé (?:de|depuis) "
    r"|Enviado (?:desde|do|de|a partir) |Inviato da|Verzonden (?:vanaf|met|vanuit)|Skickat från|Sendt fra"
    r"|Wysłano z|Odesláno z|Отправлено (?:с|из) |Lähetetty |iPhoneから送信|发自我的).{0,80}",
    re.IGNORECASE,
)
_LAST_FIELDS = 6  # lines after "From:" in which the other fields of a quoted header stand
_MANY_BREAKS = re.compile(r"\n{3,}")

# ---- the body ---------------------------------------------------------------------------------------


def body_of(part: "Message[Any, Any]", depth: int = 0) -> str:
    """The text that a mail shows, from plain text or HTML; attachments and mails inside it are passed over."""
    kind, main = part.get_content_type(), part.get_content_maintype()
    children: Any = part.get_payload()
    if main == "multipart":
        if not isinstance(children, list) or depth > 20:
            return ""
        if kind == "multipart/alternative":
            ordered = sorted(children, key=lambda child: child.get_content_type() != "text/plain")
            return next((text for child in ordered if (text := body_of(child, depth + 1)).strip()), "")
        if kind in ("multipart/related", "multipart/signed", "multipart/appledouble"):
            return body_of(children[0], depth + 1) if children else ""
        texts = (body_of(child, depth + 1) for child in children)
        return "\n".join(text for text in texts if text.strip())
    disposition = str(part.get("content-disposition", "")).strip().lower()
    if main != "text" or disposition.startswith("attachment") or (depth and part.get_filename()):
        return ""
    raw = part.get_payload(decode=True)
    text = decoded(raw if isinstance(raw, bytes) else b"", part.get_param("charset")).replace("\r\n", "\n")
    if kind == "text/html":
        return words_of_html(text)
    if kind != "text/plain":
        return ""
    flowed = str(part.get_param("format") or "").lower() == "flowed"
    return unwrapped(text, str(part.get_param("delsp") or "").lower() == "yes") if flowed else text


def decoded(raw: bytes, charset: Any) -> str:
    """Text in the encoding that the mail names, else in UTF-8, else in Windows-1252. Never raises."""
    name = str(charset).strip().lower() if isinstance(charset, str) else ""
    for encoding in (_WIDER.get(name, name), "utf-8"):
        if not encoding or encoding.replace("-", "_") in _UNSAFE_CODECS or "\x00" in encoding:
            continue
        try:
            text = raw.decode(encoding)
            text.encode()  # some old encodings can spell half a surrogate pair
        except (LookupError, ValueError):
            continue
        return text
    return raw.decode("cp1252", "replace")


def unwrapped(text: str, delete_space: bool) -> str:
    """Text whose lines were broken for the road (RFC 3676, format=flowed), with its own lines again."""
    lines: list[str] = []
    pending: list[str] = []  # a line that goes on, in pieces
    depth = 0
    for line in text.split("\n"):
        quoted = len(line) - len(line.lstrip(">"))
        line = line[quoted:].removeprefix(" ")
        if pending and (quoted != depth or line == "-- "):
            lines.append(">" * depth + "".join(pending))
            pending = []
        depth = quoted
        if line.endswith(" ") and line != "-- ":
            pending.append(line[:-1] if delete_space else line)
            continue
        lines.append(">" * depth + "".join(pending) + line)
        pending = []
    if pending:
        lines.append(">" * depth + "".join(pending))
    return "\n".join(lines)


# ---- HTML -------------------------------------------------------------------------------------------

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)([^<>]*)>|<[!?][^<>]*>")
_UNSEEN = frozenset(("script", "style", "head", "title", "template", "noscript", "svg", "blockquote"))
_QUOTE_MARKS = re.compile(
    r"""(?:class|id)\s*=\s*["']?[^"'>]*(?:gmail_quote|gmail_attr|gmail_signature|gmail_extra_quote|moz-cite-prefix"""
    r"""|moz-signature|yahoo_quoted|protonmail_quote|protonmail_signature|divRplyFwdMsg|OutlookMessageHeader"""
    r"""|AppleMailSignature|zmail_extra|mail_quote|ms-outlook-mobile-signature)""",
    re.IGNORECASE,
)
_TO_THE_END = re.compile(r"divRplyFwdMsg|OutlookMessageHeader|yahoo_quoted", re.IGNORECASE)  # the quote comes after it
_HIDDEN = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_VOID = frozenset(("br", "hr", "img", "input", "meta", "link", "col", "wbr", "area", "base"))
_PARAGRAPHS = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "hr"))
_LINES = frozenset(("div", "tr", "li", "section", "article", "pre", "dt", "dd", "center"))
_SPACE = re.compile(r"[ \t\r\n\f\xa0]+")
_AROUND_BREAK = re.compile(r" ?\n ?")


def words_of_html(text: str) -> str:
    """The text of an HTML mail as a person sees it, without the quoted mail and the signature."""
    text = without_spans(text[:LONGEST_HTML], "<!--", "-->")
    out: list[str] = []
    place = 0
    unseen, depth = "", 0  # inside which element nothing is shown, and how deep in others of its name
    for tag in _TAG.finditer(text):
        if not unseen:
            out.append(_SPACE.sub(" ", text[place : tag.start()]))
        place = tag.end()
        name = (tag[2] or "").lower()
        if unseen:
            if name == unseen:
                depth += -1 if tag[1] else (not tag[3].endswith("/"))
                unseen = unseen if depth else ""
            continue
        if not tag[1] and name not in _VOID and not (tag[3] or "").endswith("/"):
            marked = _QUOTE_MARKS.search(tag[3])
            if marked and _TO_THE_END.search(marked[0]):
                place = len(text)
                break
            if name in _UNSEEN or marked or _HIDDEN.search(tag[3]):
                unseen, depth = name, 1
                continue
        if name in _PARAGRAPHS:
            out.append("\n\n")
        elif name == "br":
            out.append("\n")
        elif name in _LINES:
            while out and out[-1] in ("", " "):
                out.pop()
            if out and not out[-1].endswith("\n"):
                out.append("\n")  # a block that ends where the next begins is one line end
            out.append("- " if name == "li" and not tag[1] else "")
        elif name in ("td", "th"):
            out.append(" ")
    if not unseen:
        out.append(_SPACE.sub(" ", text[place:]))
    shown = _AROUND_BREAK.sub("\n", html.unescape("".join(out))).replace("\xa0", " ")
    return _MANY_BREAKS.sub("\n\n", shown).strip()


# ---- own words --------------------------------------------------------------------------------------


def own_words(text: str) -> str:
    """The text without what others wrote before, what is forwarded, and the signature."""
    if "-----BEGIN PGP SIGNED MESSAGE-----" in text:
        text = _without_pgp(text)
    lines = text.split("\n")
    kept: list[str] = []
    for number, line in enumerate(lines):
        bare = line.strip()
        if bare.startswith(">"):
            continue
        if not bare:
            kept.append("")
            continue
        if _ends_here(lines, number, line, bare):
            break
        if bare[-1] in ":：" and (start := _attribution(lines, number)) is not None:
            del kept[len(kept) - (number - start) :]
            if _next_line(lines, number).startswith(">"):
                continue  # what comes after the quote is the person's again
            break  # a quote without marks: all the rest
        elif len(bare) < 120 and _SENT_FROM.fullmatch(bare):
            continue
        kept.append(line.rstrip())
    while kept and not kept[-1].strip("_-=* "):
        kept.pop()  # the rule above what was cut
    return _MANY_BREAKS.sub("\n\n", "\n".join(kept)).strip()


def _ends_here(lines: list[str], number: int, line: str, bare: str) -> bool:
    """Whether from this line on nothing is the person's own."""
    if bare == "--":
        return line.startswith("-- ") or _is_short(lines, number + 1)
    if len(bare) < 120 and _SEPARATOR.fullmatch(bare):
        return True
    if _FROM.match(bare):
        after = [one.strip() for one in lines[number + 1 : number + 1 + _LAST_FIELDS]]
        return sum(1 for one in after if _FIELD.match(one)) >= 2
    return False


def _is_short(lines: list[str], start: int) -> bool:
    """Whether what comes after a "--" is no more than a signature, and perhaps a quote."""
    count = 0
    for line in lines[start : start + 60]:
        count += bool(line.strip()) and not line.startswith(">")
        if count > LONGEST_SIGNATURE:
            return False
    return True


def _attribution(lines: list[str], number: int) -> int | None:
    """The first line of "On Monday, Anna wrote:", which may be broken over three; None where it is no such line.

    A person may write such words too: what follows must be marked as a quote, or the line has an address or a
    time of day.
    """
    quoted = _next_line(lines, number).startswith(">")
    joined = ""
    first: int | None = None
    sure = False
    for start in range(number, max(-1, number - 3), -1):
        line = lines[start].strip()
        if not line or line.startswith(">") or len(line) > 300:
            break
        joined = f"{line} {joined}".strip()
        if not quoted and not _EXACT.search(joined):
            continue
        if not (_WROTE.search(joined) or (quoted and _ADDRESSED.search(joined))):
            continue
        opens = _OPENING.match(line) is not None
        if _EXACT.search(joined) or (quoted and _DAY.search(joined)):
            if not sure or opens:
                first, sure = start, True
            if opens:
                break
        elif quoted and start == number:
            first = start
    return first


def _next_line(lines: list[str], number: int) -> str:
    return next((one.strip() for one in lines[number + 1 : number + 6] if one.strip()), "")


def _without_pgp(text: str) -> str:
    before, _, rest = text.partition("-----BEGIN PGP SIGNED MESSAGE-----")
    signed = rest.partition("-----BEGIN PGP SIGNATURE-----")[0]
    return before + signed.partition("\n\n")[2].replace("\n- ", "\n")
