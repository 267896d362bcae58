"""Secrets: what is found, what only looks like one, and that the look is quick on any text."""

import itertools
import random
import sys
import time
import types
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.rules import personal_data, secrets
from daemon.rules.account_numbers import is_card
from daemon.rules.curation import Curation
from daemon.rules.secrets import find, redacted, suspicious

LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7"  # no key of anybody


def made(length: int) -> str:
    return (LETTERS * 20)[:length]


ARMOUR = "\n".join([made(64)] * 4)


@pytest.mark.parametrize(
    ("kind", "before", "secret", "after"),
    [
        ("aws_access_key", "id ", "AKIA" + "Q2W3E4R5T6Y7U2I3", " there"),
        ("aws_secret_key", "AWS_SECRET_ACCESS_KEY=", made(40), "\n"),
        ("aws_secret_key", '"aws_secret_key": "', made(40), '"'),
        ("github_token", "", "ghp_" + made(36), "."),
        ("github_token", "use ", "github_pat_" + made(70), " now"),
        ("gitlab_token", "(", "glpat-" + made(20), ")"),
        ("slack_token", "", "xoxb-" + "123456789012-" + made(24), ""),
        ("slack_token", "post to ", "https://hooks.slack.com/services/T00/B00/" + made(24), " then"),
        ("stripe_key", "key=", "sk_live_" + made(24), ""),
        ("openai_key", "OPENAI_API_KEY=", "sk-" + made(48), "\n"),
        ("openai_key", "", "sk-proj-" + made(60), " x"),
        ("anthropic_key", "", "sk-ant-api03-" + made(60), " x"),
        ("google_key", "maps: ", "AIza" + made(35), ""),
        ("service_token", "", "npm_" + made(36), ""),
        ("service_token", "bot ", "123456789:" + made(35), " runs"),
        ("jwt", "cookie=", f"eyJ{made(20)}.eyJ{made(40)}.{made(43)}", ";"),
        ("authorization", "Authorization: Bearer ", made(32), "\n"),
        ("authorization", "curl -H 'authorization: Basic ", "dXNlcjpwYXNzdzByZA==", "'"),
        (
            "private_key",
            "x\n",
            f"-----BEGIN RSA PRIVATE KEY-----\n{ARMOUR}\n-----END RSA PRIVATE KEY-----",
            "\ny",
        ),
        (
            "private_key",
            "",
            f"-----BEGIN OPENSSH PRIVATE KEY-----\n{ARMOUR}\n-----END OPENSSH PRIVATE KEY-----",
            "",
        ),
        (
            "private_key",
            "",
            f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{ARMOUR}\n=aB3d\n-----END PGP PRIVATE KEY BLOCK-----",
            "",
        ),
        ("private_key", "torn: ", f"-----BEGIN PRIVATE KEY-----\n{ARMOUR}", ""),
        ("url_password", "postgres://ines:", "s3nha-boa", "@db.example.org/x"),
        ("password", 'password = "', "kx7#pQ2m", '"'),
        ("password", "Password: ", "Winter2024", ""),
        ("password", "the wifi password is ", "tulip4river", ", by the way"),
        ("password", "my password for the bank is ", "Zx9!kk21", "."),
        ("password", "Das Passwort lautet ", "Sommer99!", "."),
        ("password", "le mot de passe: ", "ch4t-noir", ""),
        ("password", "пароль: ", "qwe123rty", ""),
        ("password", "Mot de passe: ", "ch4t-noir", ""),
        ("password", "pAsSwOrD: ", "Winter2024", ""),
        ("password", "DB_PASSWORD=", "p4ssw0rd-x", "\n"),
        ("password", "{'pwd': '", "a1b2c3d4", "'}"),
        ("password", "api_key: ", "q7w2e9r4t1y8u3i6", ""),
        ("password", 'client_secret = "', "f81d4fae7dec11d0a765", '"'),
        ("card", "card: ", "4111 1111 1111 1111", ""),
        ("card", "card ", "4111-1111-1111-1111", " 12/27 123"),
        ("card", "card ", "4111 1111 1111 1111", " 12/27"),
        ("card", "", "5555555555554444", "."),
        ("card", "amex ", "3782 822463 10005", ""),
        ("card", "", "378282246310005", " was it"),
        ("card", "", "6011 1111 1111 1117", ""),
        ("card", "", "3530 1113 3330 0000", ""),
        ("card", "", "2223003122003222", ""),
        ("card", "old one ", "4222222222222", ""),
        ("card", "", "4111\u00a01111\u00a01111\u00a01111", ""),
        ("iban", "to ", "DE89 3704 0044 0532 0130 00", ", please"),
        ("iban", "IBAN:", "GB82WEST12345698765432", ""),
        ("iban", "", "NO93 8601 1117 947", " BIC DNBANOKK"),
        ("iban", "", "FR14 2004 1010 0505 0001 3M02 606", "."),
    ],
)
def test_what_is_found(kind: str, before: str, secret: str, after: str) -> None:
    text = before + secret + after
    (found,) = find(text)
    assert found.kind == kind
    assert text[found.start : found.end] == secret
    assert redacted(text) == f"{before}[secret: {secrets.KINDS[kind]}]{after}"
    off = Curation.from_mapping({"secrets": {"kinds": {kind: False}}})
    assert [one.kind for one in find(text, off.secrets) if one.kind == kind] == []
    allowed = Curation.from_mapping({"secrets": {"allow": [r"[\s\S]+"]}})
    assert find(text, allowed.secrets) == []


@pytest.mark.parametrize(
    "text",
    [
        "Call me on +49 151 23456789 or 0151 2345 6789 01.",
        "+1 415 555 2671 1234 56",
        "ISBN 978-3-16-148410-0 and 9783161484100",
        "EAN 4006381333931 on the pencil",
        "Order 4111 1111 1111 1112 is late.",  # Luhn's sum is wrong
        "1234 5678 9012 3452 has no issuer",
        "Invoice 41111111111111110000 has 20 digits",
        "0.4111111111111111 is a number",
        "4111111111111111.5",
        "1700000000000 ms, 1700000000000000000 ns",
        "DE89 3704 0044 0532 0130 01 is mistyped",
        "AB12 CDEF GHIJ is a licence plate",
        "Your password must have 8 characters.",
        "I forgot my password: again!",
        "The password is a secret.",
        "Passwords: the new policy",
        "password = os.environ['DB_PASSWORD']",
        'password = "your_password_here"',
        'password: "********"',
        "password=${DB_PASSWORD}",
        "the secret: always listen first, then speak",
        "Token of my affection: a single rose",
        "token: str = field(default='')",
        "api_key = get_key('openai')",
        "password = hash_password(plain_text2)",
        "password_field2 = wait.until(EC.presence)",
        "const token = req.headers['x-token-2']",
        "My password is the name of my first cat; the password was changed on Monday 12th.",
        "Password: minimum 8 characters, at least 1 digit",
        "The task-force met at the risk-assessment desk-side for the mask-wearing-policy-2020 talk",
        "sk-learn is a package; so is sk-video",
        "https://example.org:8080/path@2x.png",
        "https://user@example.org/",
        "ftp://user:password@example.org",
        "-----BEGIN PRIVATE KEY----- is how such files begin",
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----",
        "the bearer of bad news",
        "eyJ is how a token begins",
        "AKIA is a prefix; AKIAshort too",
        "At 12:30 we met; 10:45 was too early.",
        "",
    ],
)
def test_what_only_looks_like_one(text: str) -> None:
    assert find(text) == []
    assert redacted(text) == text


def test_several_secrets_of_a_text() -> None:
    text = "cards 4111 1111 1111 1111 and 5555 5555 5555 4444, password: Winter2024."
    assert (
        redacted(text)
        == "cards [secret: card number] and [secret: card number], password: [secret: password]."
    )


def test_cards_are_proved() -> None:
    assert is_card("4111111111111111")
    assert not is_card("4111111111111113")
    assert not is_card("0000000000000000")
    assert not is_card("9111111111111111")


@settings(max_examples=300, deadline=None, database=None)
@given(st.text(alphabet="aA1 4eyJ.-_:=/@\"'\nDEghp_sk", max_size=120))
def test_the_quick_look_misses_nothing(text: str) -> None:
    found = find(text + " ")
    assert not found or suspicious(text + " ")
    assert all(0 <= one.start < one.end <= len(text) + 1 for one in found)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))


@pytest.mark.parametrize(
    "piece",
    [
        "a", "1", "1 ", "4", "eyJ", "eyJa.", "sk-", "sk-a-", "password", "password for ", "password: ", "token=",
        "http://a:", "http://", "-----BEGIN PRIVATE KEY-----", "AB12", "AB12 ", "Bearer ", "authorization: ",
        "secret key", "xoxb-", "SG.", "1:", "ghp_", "A", "\n", "' ", 'pwd"',
    ],
)  # fmt: skip
def test_no_text_is_slow(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    began = time.process_time()
    find(text)
    assert time.process_time() - began < 1.0


def test_most_texts_need_only_the_quick_look() -> None:
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghilmnoprstu", k=draw.randint(2, 9))) for _ in range(2000)]
    texts = [" ".join(draw.choices(words, k=50)) for _ in range(2000)]
    assert sum(map(suspicious, texts)) < 60


# ---- personal data ----------------------------------------------------------------------------------------


@dataclass
class _Found:
    entity_type: str
    start: int
    end: int


def _fake_presidio(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in with Presidio's calls: finds what stands in its table."""
    asked: list[dict[str, Any]] = []

    class AnalyzerEngine:
        def __init__(self, nlp_engine: object, supported_languages: list[str]) -> None:
            assert nlp_engine == "engine"

        def analyze(self, text: str, **given: Any) -> list[_Found]:
            asked.append(given)
            table = {"Ines Berg": "PERSON", "Ines": "PERSON", "Lund": "LOCATION", "070 123": "PHONE_NUMBER"}
            return [_Found(kind, text.index(word), text.index(word) + len(word)) for word, kind in table.items()
                    if word in text and kind in given["entities"]]  # fmt: skip

    class NlpEngineProvider:
        def __init__(self, nlp_configuration: dict[str, Any]) -> None:
            assert nlp_configuration["models"][0]["model_name"] == "en_core_web_sm"

        def create_engine(self) -> str:
            return "engine"

    package, engine = types.ModuleType("presidio_analyzer"), types.ModuleType("presidio_analyzer.nlp_engine")
    package.AnalyzerEngine = AnalyzerEngine  # type: ignore[attr-defined]
    engine.NlpEngineProvider = NlpEngineProvider  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "presidio_analyzer", package)
    monkeypatch.setitem(sys.modules, "presidio_analyzer.nlp_engine", engine)
    monkeypatch.setattr(personal_data, "find_spec", lambda name: name != "de_core_news_sm" or None)
    personal_data._analyzer.cache_clear()
    personal_data.redacted.cache_clear()
    return asked


def test_personal_data_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.records import Memory, Turn
    from daemon.rules.curation import clean

    asked = _fake_presidio(monkeypatch)
    curation = Curation.from_mapping({"personal_data": {"presidio": True, "score": 0.7}})
    context = (Turn("user", "Lund is far."),)
    memory = Memory("chat", "Who is it?", response="Ines Berg from Lund, 070 123.", context=context)
    cleaned = clean(memory, curation)
    assert cleaned.response == "[name] from [address], [phone number]."
    assert cleaned.context == (Turn("user", "[address] is far."),)
    assert asked[0] == {
        "language": "en", "entities": ["PERSON", "LOCATION", "PHONE_NUMBER"], "score_threshold": 0.7
    }  # fmt: skip
    personal_data._analyzer.cache_clear()


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (
            "presidio_analyzer",
            "personal_data.presidio is true, but Presidio is not installed: pip install 'engramd",
        ),
        ("en_core_web_sm", "python -m spacy download en_core_web_sm"),
    ],
)
def test_what_is_missing_is_named(missing: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal_data, "find_spec", lambda name: None if name == missing else True)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        Curation.from_mapping({"personal_data": {"presidio": True}})
    assert says in str(caught.value)
    assert Curation.from_mapping({"personal_data": {"presidio": False}}).personal_data is None
