"""What goes and what never goes, on real folders and a real ledger, also under SIGKILL."""

import json
import os
import random
import signal
from zoneinfo import ZoneInfo

import pytest

from daemon import chains, disk, durable, outcome, pruning, snapshots
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.home import Home
from daemon.ledger import jobs, pins
from daemon.lock import Lock
from daemon.service import utc_now
from daemon.settings import load
from daemon.settings_layers import SettingsError
from daemon.world import World, open_world
from tests.unit.test_going_back import audit_is_clean, restore, snapshot
from tests.unit.test_service import QUICK, drop, service, work

ZONE = ZoneInfo("Europe/Berlin")


def opened(home: Home, **overrides: object) -> World:
    return open_world(home, "me", load(home, QUICK | overrides, {}))


def used(home: Home) -> int:
    """Bytes on the disk, but for the ledger's, which grows by a row that says what was pruned."""
    return sum(disk.used_bytes([*home.root.rglob("ledger.db*"), home.root]).values()) - sum(
        disk.used_bytes(home.root.rglob("ledger.db*")).values()
    )


def at(entries: list[pruning.Entry], kind: str) -> dict[str, bool]:
    return {entry.name: entry.keep for entry in entries if entry.kind == kind}


def test_checkpoints_and_jobs_of_real_nights(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"retention.jobs.keep_last": 2, "retention.jobs.keep_monthly": 0, "training.save_total_limit": 2}
    for number in range(5):
        drop(home, f"{number}.jsonl", f"thing {number}")
        work(home, **{key.replace(".", "__"): value for key, value in settings.items()})
    world = opened(home, **settings)
    try:
        before = used(home)
        report = pruning.prune(world, utc_now(), ZONE)
        assert before - used(home) == report.freed
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
    assert main([*base, "pin", "job", "001"]) == 0 and main([*base, "unpin", "job", "1"]) == 0
    assert "job 1 is left to retention" in capsys.readouterr().out
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


def test_a_damaged_snapshot_takes_no_place_and_a_future_one_stays(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    names = [snapshot(home) for _ in range(3)]
    manifest = home.snapshots / names[2] / snapshots.MANIFEST
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b"profile", b"profilE"))
    one = {f"retention.snapshots.keep_{what}": 0 for what in ("daily", "weekly", "monthly")}
    world = opened(home, **one, **{"retention.snapshots.keep_last": 1})
    try:
        early = pruning.plan(world, "2026-11-20T04:00:00Z", ZONE)  # they were taken on the next day
        assert at(early.entries, "snapshot") == dict.fromkeys(names, True)
        assert {entry.reasons for entry in early.entries if entry.name in names[:2]} == {("its date is in the future",)}
        pruning.prune(world, "2026-11-22T04:00:00Z", ZONE)
    finally:
        world.db.close()
    assert snapshots.names_in(home.snapshots) == names[1:]
    assert list(snapshots.problems(home.snapshots / names[1], {})) == []


def test_the_newest_whole_checkpoint_stays_whatever_happened_to_the_head(home: Home) -> None:
    for name in ("a", "b", "c"):
        drop(home, f"{name}.jsonl", name)
        work(home)
    world = opened(home, **{"training.save_total_limit": 1})
    try:
        head = jobs.get_head(world.db)
        assert head is not None
        for step in (4, 6):  # of v2 and v3, the head
            weights = chains.folder(world.paths.chains, head["chain"], step) / "adapter_model.safetensors"
            weights.unlink()
        outcome.tidy(world)
        report = pruning.prune(world, utc_now(), ZONE)
        why = {entry.name: entry.reasons for entry in report.entries if entry.kind == "checkpoint"}
        assert why == {
            "1/checkpoint-6": ("the head", "the newest"), "1/checkpoint-4": ("its parent, to which one can go back",),
            "1/checkpoint-2": ("the newest that is whole",),
        }  # fmt: skip
    finally:
        world.db.close()


def test_old_leftovers_go_and_young_ones_stay(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    world = opened(home)
    old, young = world.paths.root / ".tmp-old", world.paths.chains / ".engramd-tmp-young"
    old.mkdir()
    (old / "x").write_bytes(b"x" * 5000)
    young.write_bytes(b"y")
    for path in (old / "x", old):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    try:
        dry = pruning.plan(world, utc_now(), ZONE)
        assert old.exists() and at(dry.entries, "leftover") == {"state/profiles/me/.tmp-old": False}
        assert pruning.prune(world, utc_now(), ZONE).freed == dry.freed >= 8192
    finally:
        world.db.close()
    assert young.exists() and not old.exists()


def killed_prune(home: Home, operation: int, now: str, **overrides: object) -> bool:
    """Prune in a process that dies at this many renames and removals. Gives whether it came to its end before."""
    child = os.fork()
    if child == 0:
        left = [operation]

        def dying(function: object) -> object:
            def call(*args: object, **more: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **more)  # type: ignore[operator]

            return call

        for name in ("rename", "unlink", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        pruning.prune(opened(home, **overrides), now, ZONE)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def test_sigkill_anywhere_in_a_prune_breaks_nothing(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"retention.jobs.keep_last": 1, "retention.jobs.keep_monthly": 0, "retention.snapshots.keep_last": 1}
    few |= {f"retention.snapshots.keep_{what}": 0 for what in ("daily", "weekly", "monthly")}
    drop(home, "a.jsonl", "one")
    work(home)
    day = snapshot(home)
    for name in ("b.jsonl", "c.jsonl"):
        drop(home, name, name)
        work(home)
        snapshot(home)
    restore(home, day)
    dice, rounds, now = random.Random(7), 0, "2026-11-29T04:00:00Z"
    while not killed_prune(home, dice.randrange(14), now, **few):
        rounds += 1
        for name in snapshots.names_in(home.snapshots):
            assert list(snapshots.problems(home.snapshots / name, {})) == [], name
        lock, one = Lock(home), service(home)
        one.recover()
        one.stop()
        lock.release()
        assert audit_is_clean(home, capsys)
    assert rounds > 3 and len(snapshots.names_in(home.snapshots)) == 1
    paths = home.profile("me")
    assert sorted(path.name for path in (paths.chains / "1").iterdir()) == ["checkpoint-2"]  # the head is its link
    assert {path.name for path in (paths.jobs / "1-finetune").iterdir()} <= pruning.RECORDS
    assert not list(home.root.rglob(".engramd-gone-*")) and audit_is_clean(home, capsys)
