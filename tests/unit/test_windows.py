"""Hours, conditions with patience, and a pause: when a job may run."""

import json
import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from daemon import hours, ledger
from daemon.home import Home
from daemon.ledger import jobs, requests
from daemon.lock import Lock
from daemon.rules.windows import Facts, Limits, Patience, next_opening, open_at, outside, unsettled
from daemon.service import Service
from daemon.settings import load
from daemon.settings_layers import SettingsError
from tests.unit.test_service import FAKE, QUICK, drop

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("windows", "local", "is_open"),
    [
        ([], "2026-11-21 12:00", True),
        (["22:00-07:00"], "2026-11-21 22:00", True),
        (["22:00-07:00"], "2026-11-21 21:59:59", False),
        (["22:00-07:00"], "2026-11-22 06:59:59", True),
        (["22:00-07:00"], "2026-11-22 07:00", False),
        (["mon-fri 22:00-07:00"], "2026-11-20 23:00", True),  # a Friday
        (["mon-fri 22:00-07:00"], "2026-11-21 06:00", True),  # it began on the Friday
        (["mon-fri 22:00-07:00"], "2026-11-21 23:00", False),
        (["mon-fri 22:00-07:00"], "2026-11-23 06:00", False),  # the Sunday has none
        (["mon-fri 22:00-07:00", "sat,sun 00:00-24:00"], "2026-11-22 15:00", True),
        (["sat-mon 10:00-12:00"], "2026-11-23 11:00", True),
        (["00:00-24:00"], "2026-11-23 23:59:59", True),
    ],
)
def test_windows(windows: list[str], local: str, is_open: bool) -> None:
    moment = datetime.fromisoformat(local).replace(tzinfo=BERLIN)
    assert open_at([hours.parse(text) for text in windows], moment) is is_open


@pytest.mark.parametrize(
    "text", ["22-07", "25:00-07:00", "22:00-22:00", "Mo 22:00-07:00", "22:60-07:00", "", "22:00-24:01"]
)
def test_what_is_no_window_is_one_sentence(home: Home, text: str) -> None:
    with pytest.raises(SettingsError, match="is no window"):
        load(home, {"training.when.window": text}, {})


def test_a_window_may_be_one_text_or_several(home: Home) -> None:
    assert load(home, {"training.when.window": "22:00-07:00"}, {}).training.when.window == ["22:00-07:00"]


def test_the_next_opening_over_a_change_of_clocks() -> None:
    night = [hours.parse("02:30-05:00")]
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)  # on the 29th 02:00 to 03:00 are not there in Berlin
    assert next_opening(night, before, BERLIN) == datetime(2026, 3, 29, 1, tzinfo=UTC)  # 03:00, behind the gap
    assert next_opening([hours.parse("02:10-02:50")], before, BERLIN) == datetime(2026, 3, 30, 0, 10, tzinfo=UTC)
    assert next_opening([hours.parse("sun 02:10-02:50")], before, BERLIN) == datetime(2026, 4, 5, 0, 10, tzinfo=UTC)
    twice = datetime(2026, 10, 24, 12, tzinfo=UTC)  # on the 25th 02:30 comes twice
    assert next_opening(night, twice, BERLIN) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    back = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 02:10 for the second time: it was open, and is shut again
    assert not open_at(night, back.astimezone(BERLIN))
    assert next_opening(night, back, BERLIN) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    into = datetime(2026, 10, 25, 0, 40, tzinfo=UTC)  # 02:40, after its end; at 03:00 the clocks go back into it
    assert next_opening([hours.parse("00:00-02:30")], into, BERLIN) == datetime(2026, 10, 25, 1, tzinfo=UTC)
    assert next_opening([hours.parse("sat 10:00-11:00")], datetime(2026, 11, 21, 11, tzinfo=UTC), BERLIN) == datetime(
        2026, 11, 28, 9, tzinfo=UTC
    )


@pytest.mark.parametrize("seed", range(60))
def test_the_next_opening_is_the_first_open_minute(seed: int) -> None:
    """Against minutes that are tried one after another, around changes of clocks and days that a zone leaves out."""
    rng = random.Random(seed)
    name, day = rng.choice(
        [("Europe/Berlin", "2026-03-28"), ("Europe/Berlin", "2026-10-24"), ("America/Sao_Paulo", "2018-11-03"),
         ("Australia/Lord_Howe", "2026-04-04"), ("Pacific/Apia", "2011-12-29"), ("Asia/Kathmandu", "2026-11-21")]
    )  # fmt: skip
    zone = ZoneInfo(name)
    days = ("", "mon-fri ", "sat,sun ", "sun ")
    windows = []
    for _ in range(rng.randint(1, 3)):
        begin, length = rng.randrange(0, 1440, 10), rng.randrange(10, 1440, 10)
        end = (begin + length) % 1440
        text = f"{rng.choice(days)}{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
        windows.append(hours.parse(text))
    now = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(minutes=rng.randrange(48 * 60))
    if open_at(windows, now.astimezone(zone)):
        return
    minutes = (now + timedelta(minutes=n) for n in range(1, 9 * 1440))
    first = next((at for at in minutes if open_at(windows, at.astimezone(zone))), None)
    assert next_opening(windows, now, zone) == first, (name, windows, now)


def test_the_sentence_says_when_it_opens() -> None:
    limits = Limits((hours.parse("22:00-07:00"),))
    noon = datetime(2026, 11, 21, 11, tzinfo=UTC)
    assert outside(limits, noon, BERLIN) == "outside its window: it opens at 22:00 (training.when.window)"
    assert outside(limits, noon.replace(hour=22), BERLIN) is None
    friday = Limits((hours.parse("fri 22:00-23:00"),))
    assert "it opens on Friday at 22:00" in str(outside(friday, noon, BERLIN))


def test_a_moment_of_load_stops_nothing_and_an_end_must_last() -> None:
    limits, patience = Limits(max_load=0.5, settle_minutes=2), Patience()
    busy, quiet = Facts(load=0.9), Facts(load=0.1)

    def why(facts: Facts, clock: float, *, running: bool) -> str | None:
        return unsettled(limits, facts, patience, clock, running=running)

    assert why(busy, 0, running=True) is None and why(quiet, 10, running=True) is None
    assert why(busy, 20, running=True) is None
    assert why(busy, 30, running=True) == "other programs are busy (training.when.max_load = 0.5)"
    assert str(why(quiet, 40, running=False)).startswith("waiting until it is over for 2 minutes: other programs")
    assert str(why(busy, 50, running=False)).startswith("other programs are busy")
    assert why(quiet, 169, running=False) is not None and why(quiet, 171, running=False) is None
    assert why(quiet, 172, running=True) is None


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        (Limits(idle_minutes=10), Facts(idle_seconds=601), Facts(idle_seconds=599)),
        (Limits(on_battery=False), Facts(on_battery=False), Facts(on_battery=True)),
        (Limits(max_load=0.5), Facts(load=0.5), Facts(load=0.51)),
        (Limits(gpu_busy_mb=500), Facts(gpu_mb=500), Facts(gpu_mb=501)),
        (Limits(max_temperature=80), Facts(temperature=80), Facts(temperature=81)),
        (Limits(min_free_memory_mb=1000), Facts(free_memory_mb=1000), Facts(free_memory_mb=999)),
    ],
)
def test_each_condition(limits: Limits, good: Facts, bad: Facts) -> None:
    assert limits.looks and not Limits().looks
    assert unsettled(limits, good, Patience(), 0, running=False) is None
    assert unsettled(limits, Facts(), Patience(), 0, running=False) is None  # what cannot be known is no reason
    assert "training.when." in str(unsettled(limits, bad, Patience(), 0, running=False))


# -- the service -------------------------------------------------------------------------------------


def test_outside_the_window_everything_but_training_goes_on(home: Home) -> None:
    noon = {"training.when.window": "22:00-07:00", "schedule.timezone": "UTC"}
    drop(home, "a.jsonl", "one")
    lock = Lock(home)
    one = Service(home, load(home, QUICK | noon, {}), trainer=FAKE, now=lambda: "2026-11-21T12:00:00Z")
    one.run(until=one.idle)
    lock.release()
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert jobs.get_meta(db, "waits") == "outside its window: it opens at 22:00 (training.when.window)"
        assert jobs.get_head(db) is None and db.number("SELECT count(*) FROM memories") == 1
    lock = Lock(home)
    one = Service(home, load(home, QUICK | noon, {}), trainer=FAKE, now=lambda: "2026-11-21T22:00:00Z")
    one.run(until=one.idle)
    lock.release()
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert jobs.get_meta(db, "waits") is None and jobs.get_head(db) is not None


def test_train_now_is_stronger_than_hours_and_a_pause_stronger_than_both(home: Home) -> None:
    never = {"training.when.window": "22:00-07:00", "schedule.timezone": "UTC"}
    drop(home, "a.jsonl", "one")

    def asked(command: str, **arguments: object) -> dict[str, object]:
        with ledger.open_home(home.database, write=True) as db:
            number = requests.ask(db, "me", command, arguments, "2026-11-21T12:00:00Z")
        lock = Lock(home)
        one = Service(home, load(home, QUICK | never, {}), trainer=FAKE, now=lambda: "2026-11-21T12:00:00Z")
        states = ("done", "failed")
        one.run(until=lambda: (requests.get(one._db, number) or {}).get("state") in states)
        lock.release()
        with ledger.open_home(home.database, write=False) as db:
            row = requests.get(db, number)
        assert row is not None
        return json.loads(row["answer"])  # type: ignore[no-any-return]

    assert asked("pause", until="")["paused"] == "paused: engramd resume"
    assert asked("train", now=True)["error"] == "paused: engramd resume"
    assert asked("resume")["paused"] is None
    assert "outside its window" in str(asked("train", now=False)["error"])
    assert asked("train", now=True)["head"]
