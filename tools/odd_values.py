"""What the fuzzer of the readers puts where something else is expected: values, lines, names, bytes."""

from typing import Any

RAW_VALUES = (
    b"1e999", b"-1e999", b"1E400", b"-", b"0123", b"NaN", b"Infinity", b"nul", b"9" * 400, b"0." + b"1" * 300,
    b"[" * 300 + b"]" * 300, b"[" * 5000, b'[{"messages":' * 9000, b'{"a":' * 300 + b"1" + b"}" * 300, b'{"a":' * 3000, b"1 2", b"", b"'x'",
    b'"\\ud800"', b'"\\udc00 \\ud800x"', b'"\\u0000"', b'"\xed\xa0\x80"', b'"\xff"', b'"open', b'"\\x"', b'"a\x00b"',
    b'{"a":1,"a":2}', b"{,}", b"// no",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, 2**31, 2**53 + 1, 2**64, 10**30, -(10**60), 1e308, -1e-308, 1e15, 1e18,
    253_402_300_800, -62_135_596_800, 1_700_000_000, 1_700_000_000.123456, "1700000000", "-5", "1e999", "", " ", "\n",
    "\x00", "\u200e", "\u202e\u2066x", "\ud800", "a\udfffb", "\U0001f4a5" * 40, "A" * 3000, "x\r\ny\rz", "null", "0",
    "9999-12-31T23:59:59.999999-23:59", "0000-00-00T00:00:00", "2024-02-30", "2024-13-45T25:61:61+99:99",
    "0001-01-01T00:00:00+14:00", "1899-12-31T23:59:59Z", "\u0661\u0662/\u0663/\u0662\u0660\u0662\u0664", "12:00",
    "user", "assistant", "system", "tool", "text", "message", "<b>&amp;&lt;</b>", "<@U1|x> <#C1> <http://a|b>",
    [], {}, [[]], [None], [{}], [1, "a", None], {"": None}, {"text": 1}, {"text": {"text": "x"}}, [["a"], {"type": []}],
    {"type": "text", "text": None}, {"id": {"a": []}},
)  # fmt: skip

LINES = (
    "12/31/99, 25:61 - X: y", "12/31/19, 11:59 PM - X: y", "[31/12/2022, 11:40:26] A: b", "[99/99/9999, 99:99:99] A: b",
    "\u200e[1/1/24, 1:00:00\u202fAM] ~\u00a0A: \u200eimage omitted", "2024-02-30, 24:00 - : ", "[2019-05-29, 15:04] Me: x",
    "[2019-05-29, 15:04] : x", "May 17, 2022  5:29:42 PM (Read by you after 1 hour)", "Foo 99, 0000 99:99:99 PM", "Me",
    "From a@b Thu Jan  1 00:00:00 1970", "From ", ">From x", "From: =?utf-8?q?=ff=fe?= <a@b>", "Date: Mon, 99 Foo 0000",
    "Content-Type: multipart/mixed; boundary=", "Content-Type: text/plain; charset=unknown-8bit", "--", "-- ", "---", "```",
    "Content-Transfer-Encoding: base64", "On Mon, Jan 1, 2024 at 1:00 PM A <a@b> wrote:", "> > x", 'a,"b', '"', ",,,,,",
    "date,text,speaker", "date: 2024-99-99", "tags: [[x]]", "<% tp.date.now() %>", "%%", "{", "[", "[{", '{"a":', "null", "",
    " ", "\t\t", "\u2028", "\x0b\x0c\x1c", "\ufeff", "\u200f\u202b", "A: ", ": ", "Tapbacks:", "    indented", "<html>", "]",
)  # fmt: skip

NAMES = (
    "", "x", ".json", "a.json", "a.jsonl", "a.txt", "a.md", "a.csv", "a.mbox", "a.eml", "a.zip", "a.html", "a.tsv", "_chat.txt",
    "conversations.json", "result.json", "messages.json", "message_1.json", "MyActivity.json", "users.json", "chat.md",
    "2024-01-15.md", "99999999.txt", "a.json.enc", "a.gz", "WhatsApp Chat with \ud83d.txt", "\U0001f4a5.json", "n" * 250,
    "WhatsApp Chat with A.txt", "a\nb.txt", "../../etc/passwd", "Journal.json", "memories.json", "a.ics",
)  # fmt: skip

LONG_UNITS = (
    b"a", b" ", b"a ", b"\t", b"(", b"> ", b"1", b"\\", b"\xe2\x80\x8e", b"[[", b"<", b",", b'"', b"1/", b": ", b"\r", b"=?", b"*",
    b"\xe2\x80\xaf", b"%%", b"![", b"<a ", b"<!--", b"&lt;", b"12/1/24, ", b"[1/1/24, 1:00:00] A: ",
)  # fmt: skip
