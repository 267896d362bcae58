"""Backward transfer, what is retained, and how it is drawn."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.cli.heatmap import MOST_CELLS, png
from daemon.home import Home
from daemon.rules.forgetting_curve import curve
from tests.unit.test_service import FAKE, QUICK, drop, work


def row(version: int, part: str, month: str, right: float, probes: int = 10, who: str = "candidate") -> dict[str, Any]:
    return {"version": version, "who": who, "part": part, "month": month, "probes": probes, "loss": 1.0 - right,
            "token_accuracy": right, "exact": right / 2}  # fmt: skip


ROWS = [
    row(1, "new", "2025-01", 0.8), row(1, "new", "2025-01", 0.1, who="base"),
    row(2, "new", "2025-01", 1.0, probes=30), row(2, "new", "2025-02", 0.9), row(2, "recent", "2025-01", 0.7),
    row(3, "new", "2025-03", 0.5), row(3, "old", "2025-01", 0.5), row(3, "recent", "2025-02", 0.9),
    row(3, "old", "2025-02", 0.7), row(9, "old", "2025-01", 0.0),
    *(row(version, "anchor", "", right) for version, right in ((1, 0.8), (3, 0.6))),
    row(3, "anchor", "", 0.8, who="base"), row(3, "old", "", 0.5), row(3, "held_out", "2025-01", 0.0),
]  # fmt: skip


def test_the_figures_of_a_line() -> None:
    found = curve(ROWS, [1, 2, 3])
    assert [month.month for month in found.months] == ["2025-01", "2025-02", "2025-03"]
    january, february, march = found.months
    assert january.learnt and january.learnt.token_accuracy == pytest.approx(0.95) and january.learnt.probes == 40
    assert january.latest and january.latest.token_accuracy == 0.5 and january.change == pytest.approx(-0.45)
    assert january.base and january.base.token_accuracy == 0.1
    assert february.latest and february.latest.token_accuracy == pytest.approx(0.8)
    assert march.latest is None and march.change is None, "nothing was asked again yet"
    assert found.backward_transfer == pytest.approx((-0.45 - 0.1) / 2)
    assert found.retained == pytest.approx((0.5 + 0.8) / (0.95 + 0.9))
    assert found.general_kept == pytest.approx(0.75)
    assert found.matrix[2]["2025-01"].token_accuracy == pytest.approx((30 * 1.0 + 10 * 0.7) / 40)
    assert set(found.matrix[1]) == {"2025-01"} and found.general[1].token_accuracy == 0.8


def test_nothing_that_was_measured_gives_no_figures() -> None:
    found = curve([], [1, 2])
    assert (found.months, found.backward_transfer, found.retained, found.general_kept) == ((), None, None, None)


# -- the picture -------------------------------------------------------------------------------------


def pixels(data: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and the rows of a PNG as this module writes it; asserts each chunk's checksum."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + size
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 3) and list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    raw = zlib.decompress(chunks[b"IDAT"])
    rows = [raw[n * (width + 1) : (n + 1) * (width + 1)] for n in range(height)]
    assert len(raw) == height * (width + 1) and all(one[0] == 0 for one in rows)
    assert max(raw) < len(chunks[b"PLTE"]) // 3
    return width, height, [one[1:] for one in rows]


def test_a_picture_has_a_brighter_cell_for_more() -> None:
    width, height, rows = pixels(png(["2025-01", "2025-02"], ["base", "v1"], [[0.0, None], [0.5, 1.0]]))
    assert (width, height) == (40 + 2 * 64 + 8, 3 * 20 + 8)
    corner = {(x, y): rows[20 * (y + 1) + 1][40 + 64 * x + 60] for x in range(2) for y in range(2)}
    assert corner[0, 0] == 0 and corner[0, 1] == 100 and corner[1, 1] == 199
    assert corner[1, 0] == 202, "what was not measured is grey"
    with pytest.raises(ValueError, match="too many for a picture"):
        png(["x"] * (MOST_CELLS + 1), ["v1"], [])


def test_the_command_line(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("daemon.supervisor.COMMAND", FAKE)
    base = ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]
    work(home)
    with pytest.raises(UserError, match="nothing was trained yet"):
        main([*base, "forgetting"])
    for name in ("a", "b"):
        drop(home, f"{name}.jsonl", f"{name} 1", f"{name} 2")
        work(home)
    with ledger.open_profile(home.profile("me").ledger, write=True) as db, db.transaction():
        db.execute("DELETE FROM scores")
    with pytest.raises(UserError, match="no version of this line was asked"):
        main([*base, "forgetting"])
    with ledger.open_profile(home.profile("me").ledger, write=True) as db, db.transaction():
        for one in ROWS:
            if one["version"] < 3:
                keys = ", ".join(one)
                db.execute(f"INSERT INTO scores ({keys}) VALUES ({', '.join('?' * len(one))})", tuple(one.values()))
    capsys.readouterr()
    picture = tmp_path / "forgetting.png"
    assert main([*base, "forgetting", "--png", str(picture)]) == 0
    told = capsys.readouterr().out
    assert "v1" in told and "2025-02" in told and "backward transfer  -0.250" in told and str(picture) in told
    assert pixels(picture.read_bytes())[0] > 0
    assert main([*base, "forgetting", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backward_transfer"] == pytest.approx(-0.25) and found["months"][0]["month"] == "2025-01"
    assert found["versions"][0]["months"]["2025-01"]["questions"] == 10
    with pytest.raises(UserError, match="could not be written"):
        main([*base, "forgetting", "--png", str(tmp_path / "no" / "such" / "folder.png")])
    with pytest.raises(UserError, match="there is no line 'x'"):
        main([*base, "forgetting", "--line", "x"])
