"""Keys, tokens, passwords and the numbers of cards and accounts within a text: where they stand.

What a model learns, anyone who talks to it may ask for. The forms of keys are those that their issuers
publish. This reduces what slips through; nothing can promise to find all.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from daemon.rules import account_numbers, checked

ACTIONS = ("hold", "redact", "allow")


class Secret(NamedTuple):
    kind: str  # a key of KINDS
    start: int
    end: int


# kind -> what a person calls it
KINDS = {
    "private_key": "private key",
    "aws_access_key": "AWS access key",
    "aws_secret_key": "AWS secret key",
    "github_token": "GitHub token",
    "gitlab_token": "GitLab token",
    "slack_token": "Slack token",
    "stripe_key": "Stripe key",
    "anthropic_key": "Anthropic key",
    "openai_key": "OpenAI key",
    "google_key": "Google key",
    "service_token": "access token",
    "jwt": "JSON web token",
    "authorization": "authorization header",
    "url_password": "password in an address",
    "password": "password",
    "card": "card number",
    "iban": "account number",
}

DEFAULTS: dict[str, Any] = {
    "action": "hold",
    "allow": [],
    "password_length": 6,
    "token_length": 16,
    "entropy": 2.3,
    "kinds": dict.fromkeys(KINDS, True),
}


@dataclass(frozen=True)
class SecretRules:
    action: str  # of ACTIONS
    allow: tuple[re.Pattern[str], ...]  # what one of these is found in is no secret
    kinds: frozenset[str]
    password_length: int  # signs; a shorter value after "password:" is none
    token_length: int  # the same after "token:", "secret:", "api_key:"
    entropy: float  # bits a sign of such a value, at least

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Self:
        """The checked table `[secrets]`. ValueError, one sentence."""
        for kind in table["kinds"]:
            checked.flag(table["kinds"], f"secrets.kinds.{kind}")
        return cls(
            action=checked.one_of(table, "secrets.action", ACTIONS),
            allow=checked.patterns(table["allow"], "secrets.allow"),
            kinds=frozenset(kind for kind, on in table["kinds"].items() if on),
            password_length=checked.whole(table, "secrets.password_length", 4, 1000),
            token_length=checked.whole(table, "secrets.token_length", 8, 1000),
            entropy=checked.number(table, "secrets.entropy", 0.0, 8.0),
        )


# ---- the quick look: nearly all texts hold nothing of the kind -------------------------------------

# A part of each key, by a sign of it that is rare in prose. `in` is many times faster than a pattern.
_MARKS = (
    (
        "_",
        (
            "ghp_",
            "gho_",
            "ghu_",
            "ghs_",
            "ghr_",
            "github_pat_",
            "k_live_",
            "hf_",
            "npm_",
            "dop_v1_",
            "shpat_",
        ),
    ),
    ("-", ("glpat-", "xox", "xapp-", "sk-", "GOCSPX-", "pypi-", "-----BEGIN ", "PuTTY-")),
    (".", ("hooks.slack", "ya29.", "SG.")),
)
_PASSWORDS = ("passw", "passphrase", "passcode", "mot de passe")
_ALONE = ("AKIA", "ASIA", "AIza", "eyJ", "://")
_LOWERED = (
    "secret", "token", "key", "bearer", "authorization", "webhook", "pwd", "kennwort", "contrase", "wachtwoord",
    "lösenord", "salasana", "пароль",
)  # fmt: skip
_TWO_DIGITS = re.compile(r"[0-9][0-9]")
_LONG_NUMBER = re.compile(
    r"[0-9](?:(?:[ \u00a0\u202f-]?[0-9]){12}|:[A-Za-z0-9_-]{30})"
)  # a card; the key of a bot
_IBAN = re.compile(r"[A-Z][A-Z][0-9]{2}[ \u00a0]?[A-Z0-9]{4}")


def suspicious(text: str) -> bool:
    """Whether a closer look is worth it. True for every text in which `find` finds something."""
    for mark in _ALONE:
        if mark in text:
            return True
    for rare, marks in _MARKS:
        if rare in text and any(mark in text for mark in marks):
            return True
    lowered = text.lower()
    for mark in _LOWERED:
        if mark in lowered:
            return True
    if "pass" in lowered and any(mark in lowered for mark in _PASSWORDS):
        return True
    return bool(_TWO_DIGITS.search(text) and (_LONG_NUMBER.search(text) or _IBAN.search(text)))


# ---- keys with a form of their own -------------------------------------------------------------------

_LEFT = r"(?<![A-Za-z0-9_/+-])"
_KEYS = tuple(
    (kind, re.compile(_LEFT + form))
    for kind, form in (
        ("aws_access_key", r"(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
        ("github_token", r"(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{50,251})"),
        ("gitlab_token", r"glpat-[A-Za-z0-9_.-]{20,300}"),
        ("slack_token", r"(?:xox[abeoprs]-(?:[0-9]-)?[A-Za-z0-9-]{10,250}|xapp-[0-9]-[A-Za-z0-9-]{20,250})"),
        ("slack_token", r"(?:https://)?hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/]{20,200}"),
        ("stripe_key", r"[sr]k_live_[A-Za-z0-9]{16,250}"),
        ("anthropic_key", r"sk-ant-[A-Za-z0-9_-]{20,250}"),
        ("openai_key", r"sk-(?!ant-)(?:[a-z]{2,10}-){0,2}(?=[A-Za-z_-]{0,60}[0-9])[A-Za-z0-9_-]{20,250}"),
        ("google_key", r"(?:AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{20,60}|ya29\.[A-Za-z0-9_-]{30,400})"),
        (
            "service_token",
            r"(?:hf_[A-Za-z]{34}|npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{40,300})(?![A-Za-z0-9])",
        ),
        ("service_token", r"(?:SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}|(?:dop_v1|shpat)_[a-f0-9]{32,64})"),
        ("service_token", r"[0-9]{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),  # a bot of Telegram
        ("jwt", r"eyJ[A-Za-z0-9_-]{8,4000}\.eyJ[A-Za-z0-9_-]{8,20000}\.[A-Za-z0-9_-]{8,2000}"),
        ("authorization", r"(?i:bearer)\s+(?=[^\s]{0,60}[0-9])(?P<value>[A-Za-z0-9._~+/-]{20,4000}=*)"),
        (
            "authorization",
            r"""(?i:authorization)["']?\s{0,9}[:=]\s{0,9}["']?(?i:basic|token|bearer|digest)\s+"""
            r"""(?P<value>[A-Za-z0-9._~+/-]{8,4000}=*)""",
        ),
        (
            "aws_secret_key",
            r"""(?i:(?:aws[ _-]{0,2})?secret[ _-]{0,2}(?:access[ _-]{0,2})?key)["']?"""
            r"""\s{0,9}(?:[:=]|=>|is\b)?\s{0,9}["']?"""
            r"""(?P<value>(?=[A-Za-z0-9/+]{0,39}[0-9])[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])""",
        ),
    )
)
_URL_PASSWORD = re.compile(
    r"[A-Za-z][A-Za-z0-9+.]{1,20}://[^\s/:@\"'<>]{1,100}:(?P<value>[^\s/@\"'<>]{3,100})@"
)

_VALUE = (
    r"""(?:"(?P<double>[^"\n]{4,200})"|'(?P<single>[^'\n]{4,200})'|`(?P<tick>[^`\n]{4,200})`"""
    r"""|(?P<bare>[^\s"'`<>]{4,200}))"""
)
_SET = r"""["'`\]]{0,2}\s{0,9}(?::=|=>|={1,3}|:|：|\b(?:is|was|ist|lautet|est|es|är|on)\b:?)\s{0,9}"""
_FOR = r"""(?:\s(?:for|of|to|on|für|zu|pour|de|para)\s[^\n:=]{1,40}?)?"""
_PASSWORD = re.compile(
    r"(?i)(?:passwor[dt]|passwd|passphrase|passcode|kennwort|mot de passe|contraseña|wachtwoord|lösenord"
    rf"|salasana|пароль|(?<![A-Za-z])pwd)[A-Za-z0-9_]{{0,20}}{_FOR}{_SET}{_VALUE}"
)
_TOKEN = re.compile(
    r"(?i)(?:secret|token|api[ _-]?key|access[ _-]?key|private[ _-]?key|auth[ _-]?key|webhook)[A-Za-z0-9_]{0,20}"
    rf"{_SET}{_VALUE}"
)
# Values that stand for one: placeholders, names of variables, masked ones.
_PLACEHOLDER = re.compile(
    r"(?i)(?:your|my|the|some|new|old)[_ -]?(?:pass|secret|token|key|api)|pass(?:word|wd)?[0-9]{0,3}$|secret$|example"
    r"|placeholder|redacted|changeme|env(?:iron)?[.\[(]|getenv|process\.|config[.\[]|settings[.\[]|^\$|^%|^\{|^<|^\(|^https?:"
    r"|^[A-Za-z_][\w.]*\(|^(.)\1+$|[*•●x]{4}|\.\.\.|…|^(?:none|null|true|false|undefined|string|str)\b"
)


def _entropy(text: str) -> float:
    """Shannon's, in bits a sign."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _is_password(value: str, quoted: bool, rules: SecretRules) -> bool:
    """Not a word of the language: signs of several kinds, and enough of them."""
    if len(value) < rules.password_length or _PLACEHOLDER.search(value) or _entropy(value) < rules.entropy:
        return False
    digits = any(sign.isdigit() for sign in value)
    letters = any(sign.isalpha() for sign in value)
    others = any(not sign.isalnum() and sign not in " -'’" for sign in value)
    mixed = value != value.lower() and value[1:] != value[1:].lower()  # capitals within, not just in front
    if quoted and " " not in value:
        return letters + digits + others + mixed >= 2 or len(value) >= 20
    if quoted:
        return digits and letters and len(value.split()) <= 6
    return letters and (digits or (others and mixed)) and len(value) <= 100


def _is_token(value: str, rules: SecretRules) -> bool:
    if len(value) < rules.token_length or " " in value or _PLACEHOLDER.search(value):
        return False
    digits = sum(sign.isdigit() for sign in value)
    plain = sum(sign.isalnum() or sign in "-_.+/=~" for sign in value)
    return (
        digits >= 2 and digits < len(value) and plain == len(value) and _entropy(value) >= rules.entropy + 0.7
    )


def _value(found: re.Match[str]) -> tuple[int, int, bool]:
    """(start, end, whether quoted) of what is set; the full stop or bracket after a bare one is none of it."""
    group = found.lastgroup or "bare"
    start, end = found.span(group)
    if group == "bare":
        end = start + len(found[group].rstrip(".,;:?)]}"))
    return start, end, group != "bare"


# ---- what is found by rules rather than by a form ----------------------------------------------------

_BEGIN = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[0-9]:"
)
_BODY = re.compile(r"[A-Za-z0-9+/=]{24}")


def _private_keys(text: str, rules: SecretRules) -> Iterator[Secret]:
    """From the first line to the end mark; a torn one to the end of the text."""
    end = 0
    while found := _BEGIN.search(text, end):
        mark = text.find("-----END ", found.end())
        close = text.find("-----", mark + 9) if mark >= 0 else -1
        end = close + 5 if close >= 0 else len(text)
        if _BODY.search(text, found.end(), end):
            yield Secret("private_key", found.start(), end)


def _forms(text: str, rules: SecretRules) -> Iterator[Secret]:
    for kind, form in _KEYS:
        if kind in rules.kinds:
            for found in form.finditer(text):
                yield Secret(kind, *found.span(found.lastgroup or 0))


def _settings(text: str, rules: SecretRules) -> Iterator[Secret]:
    """Passwords and tokens that have no form: known by the word in front of them."""
    for found in _PASSWORD.finditer(text):
        start, end, quoted = _value(found)
        if _is_password(text[start:end], quoted, rules):
            yield Secret("password", start, end)
    for found in _TOKEN.finditer(text):
        start, end, _ = _value(found)
        if _is_token(text[start:end], rules):
            yield Secret("password", start, end)


def _url_passwords(text: str, rules: SecretRules) -> Iterator[Secret]:
    for found in _URL_PASSWORD.finditer(text):
        if not _PLACEHOLDER.search(found["value"]):
            yield Secret("url_password", *found.span("value"))


def _account_numbers(text: str, rules: SecretRules) -> Iterator[Secret]:
    for kind, spans in (("card", account_numbers.cards), ("iban", account_numbers.ibans)):
        if kind in rules.kinds:
            yield from (Secret(kind, start, end) for start, end in spans(text))


_Finder = Callable[[str, SecretRules], Iterator[Secret]]
_FINDERS: tuple[_Finder, ...] = (  # the surest first
    _private_keys, _forms, _account_numbers, _url_passwords, _settings,
)  # fmt: skip


# ---- what others call ----------------------------------------------------------------------------------


def find(text: str, rules: SecretRules | None = None) -> list[Secret]:
    """The secrets of a text in their order, none overlapping another."""
    if not suspicious(text):
        return []
    rules = rules or ALL
    taken: list[Secret] = []
    for finder in _FINDERS:
        for secret in finder(text, rules):
            if secret.kind not in rules.kinds:
                continue
            said = text[secret.start : secret.end]
            overlaps = any(secret.start < one.end and one.start < secret.end for one in taken)
            if not overlaps and not any(allowed.search(said) for allowed in rules.allow):
                taken.append(secret)
    return sorted(taken, key=lambda secret: secret.start)


def first_in(texts: Iterable[str], rules: SecretRules) -> str | None:
    """The kind of the first secret in any of the texts. One quick look over all of them together."""
    every = list(texts)
    if not suspicious("\n".join(every)):
        return None
    for text in every:
        if found := find(text, rules):
            return found[0].kind
    return None


def redacted(text: str, rules: SecretRules | None = None) -> str:
    """The text with each secret replaced by what it was: `[secret: card number]`."""
    found = find(text, rules)
    for secret in reversed(found):
        text = f"{text[: secret.start]}[secret: {KINDS[secret.kind]}]{text[secret.end :]}"
    return text


ALL = SecretRules.from_mapping(DEFAULTS)
