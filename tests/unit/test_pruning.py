"""What goes and what never goes, on real folders and a real ledger; and a year of daily use in seconds."""

import json
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from daemon import disk, durable, ledger, pruning, snapshots, snapshotting
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.home import Home
from daemon.ledger import jobs, pins
from daemon.rules.retention import bound
from daemon.service import utc_now
from daemon.settings import load
from daemon.settings_layers import SettingsError
from daemon.world import World, open_world
from tests.unit.test_going_back import audit_is_clean, restore, snapshot
from tests.unit.test_service import QUICK, drop, work

ZONE = ZoneInfo("Europe/Berlin")


def opened(home: Home, **overrides: object) -> World:
    return open_world(home, "me", load(home, QUICK | overrides, {}))


def at(entries: list[pruning.Entry], kind: str) -> dict[str, bool]:
    return {entry.name: entry.keep for entry in entries if entry.kind == kind}


def test_checkpoints_and_jobs_of_real_nights(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"retention.jobs.keep_last": 2, "retention.jobs.keep_monthly": 0, "training.save_total_limit": 2}
    for number in range(5):
        drop(home, f"{number}.jsonl", f"thing {number}")
        work(home, **{key.replace(".", "__"): value for key, value in settings.items()})
    world = opened(home, **settings)
    try:
        report = pruning.prune(world, utc_now(), ZONE)
        assert at(report.entries, "job") == {"5": True, "4": True, "3": False, "2": False, "1": False}
        assert set(at(report.entries, "checkpoint").values()) == {True} and report.freed > 0
        left = {path.name for path in (world.paths.jobs / "1-finetune").iterdir()}
        assert "run-summary.json" in left and left <= pruning.RECORDS
        assert not [entry for entry in pruning.plan(world, utc_now(), ZONE).entries if not entry.keep]
    finally:
        world.db.close()
    assert audit_is_clean(home, capsys)


def test_a_chain_that_was_left_goes_after_a_week(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    day = snapshot(home)
    for name in ("b.jsonl", "c.jsonl"):
        drop(home, name, name)
        work(home)
    restore(home, day)  # on 2026-11-21
    world = opened(home)
    try:
        soon = pruning.plan(world, "2026-11-25T04:00:00Z", ZONE)
        assert not [entry for entry in soon.entries if not entry.keep]
        pins.pin(world.db, "version", "3", "2026-11-21T09:00:00Z")
        late = pruning.prune(world, "2026-11-29T04:00:00Z", ZONE)
        assert at(late.entries, "checkpoint") == {
            "2/checkpoint-2": True, "1/checkpoint-2": True, "1/checkpoint-4": False, "1/checkpoint-6": True
        }  # fmt: skip
        assert {entry.reasons for entry in late.entries if entry.name == "1/checkpoint-6"} == {("pinned",)}
    finally:
        world.db.close()
    assert audit_is_clean(home, capsys)


def test_the_command_line_shows_pins_and_frees(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]
    few = ["--set=retention.snapshots.keep_daily=0", "--set=retention.snapshots.keep_weekly=0",
           "--set=retention.snapshots.keep_monthly=0", "--set=retention.snapshots.keep_last=1"]  # fmt: skip
    drop(home, "a.jsonl", "one")
    work(home)
    first, second = snapshot(home), snapshot(home)
    capsys.readouterr()
    assert main([*base, *few, "prune", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"remove  snapshot    {first}" in shown and "no rule keeps it" in shown and "1 would be removed" in shown
    assert main([*base, "pin", "snapshot", first]) == 0 and main([*base, "pin"]) == 0
    assert f"snapshot {first} is kept until" in capsys.readouterr().out
    assert main([*base, *few, "prune"]) == 0 and "0 removed" in capsys.readouterr().out
    assert main([*base, "unpin", "snapshot", first]) == 0
    assert main([*base, *few, "prune"]) == 0 and "1 removed" in capsys.readouterr().out
    assert snapshots.names_in(home.snapshots) == [second]
    with pytest.raises(UserError, match="there is no snapshot 1999-01-01 of profile me"):
        main([*base, "pin", "snapshot", "1999-01-01"])
    capsys.readouterr()
    assert main([*base, "disk", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["free"] > 0 and {one["what"] for one in told["uses"]} >= {"checkpoints", "jobs", "ledger"}


def test_an_empty_policy_is_one_sentence(home: Home) -> None:
    none = {f"retention.snapshots.keep_{what}": 0 for what in ("daily", "weekly", "monthly")}
    with pytest.raises(SettingsError, match=r"retention\.snapshots keeps nothing; set one of its keys above 0"):
        load(home, none, {})
    with pytest.raises(SettingsError, match="it is no span of time"):
        load(home, {"retention.jobs.keep_within": "soon"}, {})


def test_a_removal_that_was_cut_off_is_finished(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    snapshot(home)
    gone = home.snapshots / f"{durable.GONE_PREFIX}0123"
    (gone / "chains").mkdir(parents=True)
    (gone / "chains" / "x").write_bytes(b"x")
    world = opened(home)
    try:
        pruning.prune(world, "2026-11-21T04:00:00Z", ZONE)
    finally:
        world.db.close()
    assert not gone.exists() and audit_is_clean(home, capsys)


# -- a year ------------------------------------------------------------------------------------------

CHECKPOINT = 60_000  # bytes
JOB = 30_000


def night(world: World, number: int, now: datetime, dice: random.Random) -> None:
    """What a night leaves: a job's folder, a promoted version, a checkpoint in the chain; books by the real ledger."""
    db, stamp = world.db, now.isoformat().replace("+00:00", "Z")
    folder = world.paths.jobs / f"{number}-finetune"
    folder.mkdir()
    (folder / "samples.jsonl").write_bytes(dice.randbytes(JOB))
    (folder / "run-summary.json").write_text("{}")
    checkpoint = world.paths.chains / "1" / f"checkpoint-{number}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(dice.randbytes(CHECKPOINT))
    files = {"weights": {"sha256": durable.sha256_file(checkpoint / "weights"), "size": CHECKPOINT}}
    (checkpoint / "manifest.json").write_text(json.dumps({"files": files}))
    for path in checkpoint.iterdir():
        path.chmod(0o400)
    sha256 = durable.sha256_file(checkpoint / "manifest.json")
    with db.transaction():
        if number == 1:
            jobs.insert_chain(db, 1, "k", {"method": "lora", "rank": 8}, "the first", stamp)
        jobs.insert(db, job=number, kind="finetune", folder=folder.name, spec_sha256="", chain=1, parent_sha256=None,
                    parent_step=number - 1, steps=1, samples=1, now=stamp, memories=[], batches=[])  # fmt: skip
        jobs.start(db, number, stamp)
        jobs.finish(db, number, {"exit_code": 0}, stamp)
        jobs.insert_version(db, version=number, job=number, chain=1, step=number, sha256=sha256, now=stamp)
        version = jobs.version(db, number)
        assert version is not None
        jobs.promote(db, version, "good", stamp)


def test_a_year_of_nights_stays_under_the_bound(home: Home) -> None:
    world = opened(home)
    snaps, folders = world.settings.retention.snapshots, world.settings.retention.jobs
    ledger_size = 320_000
    limit = bound(snaps, folders, checkpoints=3, checkpoint=CHECKPOINT + 12_000, ledger=ledger_size, job=JOB + 12_000,
                  other=2_000_000)  # fmt: skip
    dice, now, peak = random.Random(3), datetime(2026, 1, 1, 2, tzinfo=UTC), 0
    from daemon import outcome

    for number in range(1, 366):
        night(world, number, now, dice)
        outcome.tidy(world)
        stamp = (now + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
        snapshotting.take(world, stamp[:10], stamp)
        if number % 7 == 0 or number > 340:
            peak = max(peak, sum(disk.used_bytes([home.root]).values()))
        pruning.prune(world, stamp, ZONE)
        now += timedelta(days=1)
    kept = snapshots.names_in(home.snapshots)
    size = os.stat(world.paths.ledger).st_size
    world.db.close()
    assert size <= ledger_size, size
    assert peak <= limit <= 1.5 * peak, (peak, limit, limit / peak)
    assert "2026-12-31" in kept and "2026-06-30" in kept and "2026-06-29" not in kept and len(kept) <= 32
    with ledger.open_profile(world.paths.ledger, write=False) as db:
        assert jobs.count(db) == 365 and Path(world.paths.chains / "1" / "checkpoint-365").is_dir()
