"""A window that ends in mid-job, again and again, gives the bits of a night without one. Real trainer, real service."""

from pathlib import Path

from daemon import ledger
from daemon.ledger import jobs
from daemon.lock import Lock
from daemon.progress_tail import last
from daemon.service import Service
from daemon.settings import load
from tests.faults.night import Night

WINDOW = {"training.when.window": "22:00-07:00", "schedule.timezone": "UTC"}
NOON, NIGHT = "2026-11-21T12:00:00Z", "2026-11-21T23:00:00Z"


def test_a_window_that_ends_in_mid_job_changes_no_bit(tmp_path: Path) -> None:
    quiet = Night(tmp_path / "quiet")
    quiet.drop(0, 24)
    quiet.finish()
    night = Night(tmp_path / "night")
    night.drop(0, 24)
    now, closed, steps = [NIGHT], 0, 0
    lock = Lock(night.home)
    service = Service(night.home, load(night.home, WINDOW, {}), now=lambda: now[0])
    folder = night.home.profile("me").jobs / "1-finetune"

    def done() -> bool:
        nonlocal closed, steps
        with ledger.open_profile(night.home.profile("me").ledger, write=False) as db:
            job, waits = jobs.open_job(db), jobs.get_meta(db, "waits")
            if jobs.get_head(db) is not None:
                return True
        if now[0] == NIGHT and job and job["state"] == "running" and closed < 3:
            step = (last(folder) or {}).get("step") or 0
            if step > steps:  # it has gone on by itself since it was opened
                now[0], closed, steps = NOON, closed + 1, step
        elif now[0] == NOON and job and job["state"] == "frozen":
            assert waits == "outside its window: it opens at 22:00 (training.when.window)"
            now[0], steps = NIGHT, (last(folder) or {}).get("step") or 0
        return False

    try:
        service.run(until=done)
    finally:
        lock.release()
    with ledger.open_profile(night.home.profile("me").ledger, write=False) as db:
        job = jobs.get(db, 1)
    assert job is not None and job["state"] == "promoted" and (job["crashes"], job["kills"]) == (0, 0)
    assert closed == 3 and job["attempts"] == 4
    assert night.bits() == quiet.bits()
