"""`engramd promote vN --despite "reason"`: a version that the gate refused is relied on all the same.

Only where the head is still the version that it started from: then promoting it is what the verdict would have done.
The checkpoint goes into its chain by rename, then one transaction moves the head; the request stays open until that
is done, so that a killed daemon finds the checkpoint at either place and goes on.
"""

import json
from typing import Any

from daemon import chains, losses, outcome
from daemon.going_back import job_out_of_the_way
from daemon.ledger import jobs, rehearsal, scores
from daemon.logs import get_logger
from daemon.training import Training
from daemon.world import World
from trainer import names

LONGEST_REASON = 500  # characters

_log = get_logger()

Told = dict[str, Any]


def answer(world: World, training: Training, arguments: Told, now: str) -> Told | None:
    """What was done; None where an open job is still to stop. Raises ValueError with a sentence."""
    number, why = int(arguments["version"]), " ".join(str(arguments["despite"]).split())
    if not why or len(why) > LONGEST_REASON:
        raise ValueError(f'say why, in at most {LONGEST_REASON} characters: engramd promote v{number} --despite "..."')
    checked(world, number, whole=False)
    if not job_out_of_the_way(world, training, f"v{number} is promoted by hand"):
        return None
    return go(world, number, why, now)


def go(world: World, number: int, why: str, now: str) -> Told:
    """Promote it. No job may be open. Raises ValueError with a sentence."""
    db = world.db
    row, job = checked(world, number)
    told = _told(world, row, job)
    try:
        chains.adopt(
            world.paths.jobs / str(job["folder"]), f"{names.CHECKPOINT_PREFIX}{row['step']}", world.paths.chains,
            row["chain"], row["checkpoint_sha256"],
        )  # fmt: skip
    except chains.DamagedCheckpoint as damage:
        raise ValueError(str(damage)) from None
    with db.transaction():
        jobs.promote(db, row, f"promoted by hand: {why}; it had been refused: {row['reason']}", now)
        rehearsal.record_losses(db, job["id"], losses.of_memories(world.paths.jobs / str(job["folder"])))
        told["trained"] = scores.despite(db, row, why)
    outcome.tidy(world)
    _log.warning("version_promoted_despite", profile=world.name, version=number, reason=why, refused=row["reason"],
                 memories=told["trained"])  # fmt: skip
    return told


def dry_run(world: World, number: int) -> Told:
    """What `go` would do; changes nothing. Raises ValueError with a sentence."""
    return _told(world, *checked(world, number))


def _told(world: World, row: Told, job: Told) -> Told:
    states = scores.new_of_version(world.db, job["id"]) if not row["line"] else {}
    return {
        "version": row["id"], "line": row["line"], "step": row["step"], "instead_of": row["parent"],
        "refused": row["reason"], "trained": sum(states.values()), "gate": json.loads(row["gate"]),
    }  # fmt: skip


def checked(world: World, number: int, *, whole: bool = True) -> tuple[Told, Told]:
    """The rows of the version and of its job. Raises ValueError where it cannot be promoted, with the way on; with
    `whole` also where its checkpoint is not, every byte of which is read for that."""
    db = world.db
    row = jobs.version(db, number)
    if row is None:
        raise ValueError(f"there is no v{number} of profile {world.name}: engramd models lists them")
    if row["state"] != "refused":
        raise ValueError(f"v{number} {_OTHERWISE[row['state']].format(number)}")
    job = jobs.get(db, row["job"])
    assert job is not None
    if not json.loads(row["gate"] or "{}").get("done"):
        raise ValueError(f"v{number} was not trained to its end ({row['reason']}), so there is nothing to rely on: "
                         "engramd retry BATCH trains it again")  # fmt: skip
    head = jobs.get_head(db, row["line"])
    if (head["version"] if head else None) != row["parent"]:
        began, now_is = (f"v{one}" if one else "the base" for one in (row["parent"], head and head["version"]))
        way = f"rollback {began}" if row["parent"] else "reset"
        raise ValueError(f"v{number} was made when {began} was in service, and now {now_is} is: go back to {began} "
                         f"first (engramd models {way}), or leave it")  # fmt: skip
    if forgotten := scores.forgotten_in(db, job["id"]):
        what = "a memory that was" if forgotten == 1 else f"{forgotten} memories that were"
        raise ValueError(f"v{number} has learnt {what} forgotten since: it stays refused")
    _look_for_checkpoint(world, row, job, whole=whole)
    return row, job


_OTHERWISE = {
    "candidate": "is not judged yet: engramd status",
    "promoted": "is promoted already",
    "undone": "was promoted, and gone back over: engramd models rollback v{}",
}


def _look_for_checkpoint(world: World, row: Told, job: Told, *, whole: bool) -> None:
    """It lies in its job's folder, or, after a crash, in its chain. Raises ValueError."""
    place = chains.folder(world.paths.chains, row["chain"], row["step"])
    for point in jobs.checkpoints(world.db):
        if (point["chain"], point["step"]) == (row["chain"], row["step"]):
            raise ValueError(f"job {point['job']} took the place of v{row['id']} in chain {row['chain']} meanwhile: "
                             "it stays refused, and engramd retry BATCH trains what was new in it")  # fmt: skip
    own = world.paths.jobs / str(job["folder"]) / place.name
    found = next((one for one in (own, place) if one.is_dir()), None)
    if found is None:
        raise ValueError(f"the checkpoint of v{row['id']} is on this disk no more: retention pruned the folder of job "
                         f"{job['id']}")  # fmt: skip
    try:
        if whole:
            chains.verify(found, row["checkpoint_sha256"])
    except chains.DamagedCheckpoint as damage:
        raise ValueError(f"v{row['id']} cannot be relied on: {damage}") from None
