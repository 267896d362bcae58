"""Numbers of cards and accounts within a text, proved by their check digits.

Cards by issuer prefix, length and Luhn's sum (ISO/IEC 7812), accounts (IBAN) by country, length and remainder
(ISO 13616). One in ten of the other long numbers with a card's prefix and length passes Luhn's sum too.
"""

import re
from collections.abc import Iterator

_GAP = r"[ \u00a0\u202f-]"
_CARDS = tuple(
    re.compile(rf"(?<![\w+.,]){form}(?![\w]|[.,-][0-9])")
    for form in (
        rf"[0-9]{{4}}({_GAP})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{3}}",
        rf"[0-9]{{4}}({_GAP})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}",
        rf"[0-9]{{4}}({_GAP})[0-9]{{6}}\1[0-9]{{4,5}}",
        r"[0-9]{13,19}",
    )
)
# Issuer prefixes (as ranges of the first six digits) and the lengths that they use.
_ISSUERS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (400000, 499999, (13, 16, 19)),  # Visa
    (510000, 559999, (16,)),  # Mastercard
    (222100, 272099, (16,)),
    (340000, 349999, (15,)),  # American Express
    (370000, 379999, (15,)),
    (601100, 601199, (16, 19)),  # Discover
    (644000, 659999, (16, 19)),
    (352800, 358999, (16, 19)),  # JCB
    (300000, 305999, (14, 16)),  # Diners Club
    (360000, 369999, (14, 16)),
    (380000, 399999, (14, 16)),
    (620000, 629999, (16, 19)),  # UnionPay
    (500000, 509999, (16, 19)),  # Maestro
    (560000, 589999, (16, 19)),
    (630400, 630499, (16, 19)),
    (675900, 676399, (16, 19)),
    (220000, 220499, (16, 19)),  # Mir
)


def is_card(digits: str) -> bool:
    """Issuer, length and Luhn's sum. 13 digits that are a valid EAN are taken for one: such cards are long gone."""
    first = int(digits[:6])
    if not any(low <= first <= high and len(digits) in lengths for low, high, lengths in _ISSUERS):
        return False
    total = 0
    for place, sign in enumerate(reversed(digits)):
        value = int(sign) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    if total % 10 or len(set(digits)) == 1:
        return False
    return len(digits) != 13 or sum(int(sign) * (1 + 2 * (n % 2)) for n, sign in enumerate(digits)) % 10 != 0


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Where card numbers stand: (start, end). Grouped as on a card, or without gaps; phone numbers are neither."""
    for form in _CARDS:
        for found in form.finditer(text):
            if is_card("".join(sign for sign in found[0] if sign.isdigit())):
                yield found.span()


# ISO 13616: country and length.
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?=[ \u00a0]?[A-Z0-9]{4})")
_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 "
    "EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 "
    "IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 "
    "NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 "
    "SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
_IBANS = {pair[:2]: int(pair[2:]) for pair in _LENGTHS.split()}


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """Where account numbers stand: (start, end)."""
    for found in _IBAN_START.finditer(text):
        length, signs, at = _IBANS.get(found[0][:2], 0), "", found.start()
        while at < len(text) and len(signs) < length:
            if text[at].isascii() and (text[at].isdigit() or text[at].isupper()):
                signs += text[at]
            elif text[at] not in " \u00a0":
                break
            at += 1
        if not length or len(signs) < length or (at < len(text) and text[at].isalnum()):
            continue
        if int("".join(str(int(sign, 36)) for sign in signs[4:] + signs[:4])) % 97 == 1:
            yield found.start(), at
