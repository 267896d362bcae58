"""Scores of candidate, served version and base; answers in the model's own words; losses of samples."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import jobs
from tests.forked_trainer import ForkedTrainer
from trainer import names
from trainer.contract import ExitCode, Probe
from trainer.scores import flat, judged, lines, measures

GROUPS = ("new", "recent", "old", "held_out", "anchor")


def _probes(count: int = 5, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{n}",
            "messages": s["messages"][:1],
            "answer": s["messages"][1]["content"],
            "memory": f"m{n}",
            "group": GROUPS[n % 5],
            **more,
        }
        for n, s in enumerate(jobs.some_samples(count))
    ]


def _metrics(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job / names.METRICS).read_bytes())
    return found


# --- figures -------------------------------------------------------------------------------------------


def test_figures_of_a_group() -> None:
    scores = [
        {"loss": 1.0, "token_accuracy": 0.5, "exact": False},
        {
            "loss": 4.0,
            "token_accuracy": 1.0,
            "exact": True,
            "free": "x",
            "free_exact": False,
            "free_fuzzy": True,
        },
    ]
    assert measures([1, 3], scores) == {
        "probes": 2.0, "loss": 3.25, "token_accuracy": 0.875, "exact": 0.5, "free_exact": 0.0, "free_fuzzy": 1.0,
    }  # fmt: skip
    probes = [
        Probe.model_validate({**one, "group": group})
        for one, group in zip(_probes(2), ("new", "old"), strict=True)
    ]
    told = flat(probes, [1, 3], {"candidate": scores, "base": scores[::-1]})
    assert (
        told["candidate.new.loss"] == 1.0
        and told["candidate.old.loss"] == 4.0
        and told["base.new.loss"] == 4.0
    )
    assert "candidate.new.free_exact" not in told and told["candidate.old.free_fuzzy"] == 1.0
    assert (told["probes"], told["probe_loss"], told["probe_exact"]) == (2.0, 3.25, 0.5)
    line = lines(probes, [1, 3], {"candidate": scores})[1]
    assert line == {
        "id": "p1", "memory": "m1", "group": "old", "form": "own", "tokens": 3, "candidate": scores[1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "known", "exact", "fuzzy"),
    [
        ("Ada lives in Lund.", "Ada lives in Lund.", True, True),
        ("  ada lives in LUND ", "Ada lives in Lund.", True, True),
        ("I think that Ada lives in Lund, near the river.", "Ada lives in Lund.", False, True),
        ("Ada Brandt lives in Lund now", "Ada Brandt lives in Lund.", False, True),
        ("Ada lives in Oslo.", "Ada lives in Lund.", False, False),
        ("No.", "Ada lives in Lund.", False, False),
        ("", "Lund", False, False),
        ("She moved to Lunden", "Lund", False, False),  # words, not letters
        ("1984", "1984", True, True),
        ("Привет, мир", "привет мир", True, True),
        ("ｆｕｌｌ", "full", True, True),
        ("!?", "...", True, True),
    ],
)
def test_a_free_answer_is_judged(said: str, known: str, exact: bool, fuzzy: bool) -> None:
    assert judged(said, known) == {"free": said, "free_exact": exact, "free_fuzzy": fuzzy}


# --- who is scored when --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["lora", "full"])
def two_nights(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A first job from the base and a second one from its checkpoint, each with probes of all groups."""
    root = tmp_path_factory.mktemp(request.param)
    recipe = jobs.recipe(
        method=request.param, learning_rate=2e-3, full_learning_rate=5e-5, num_train_epochs=20
    )
    jobs.write_job(root / "one", jobs.some_samples(5), recipe=recipe, probes=_probes(), max_new_tokens=40)
    assert jobs.run(root / "one").exit_code == ExitCode.DONE
    jobs.write_job(
        root / "two",
        jobs.some_samples(5, start=30),
        recipe=recipe,
        probes=_probes(free=True),
        parent=jobs.checkpoint(root / "one"),
        max_new_tokens=40,
    )
    assert jobs.run(root / "two").exit_code == ExitCode.DONE
    return request.param, root / "one", root / "two"


def test_a_first_job_is_held_against_the_base(two_nights: tuple[str, Path, Path]) -> None:
    told = jobs.result(two_nights[1]).metrics
    for group in GROUPS:
        assert told[f"candidate.{group}.probes"] == 1
        assert told[f"candidate.{group}.loss"] < told[f"served.{group}.loss"] == told[f"base.{group}.loss"]
    assert told["probes"] == 5 and _metrics(two_nights[1])["metrics"] == told


def test_a_second_job_is_held_against_its_parent_and_the_base(two_nights: tuple[str, Path, Path]) -> None:
    """What was the candidate is now served, and the base is the same base."""
    one, two = (jobs.result(job).metrics for job in two_nights[1:])
    for group in GROUPS:
        assert two[f"served.{group}.loss"] == pytest.approx(one[f"candidate.{group}.loss"], rel=1e-4)
        assert two[f"base.{group}.loss"] == pytest.approx(one[f"base.{group}.loss"], rel=1e-4)
        assert two[f"candidate.{group}.loss"] != two[f"served.{group}.loss"]


def test_each_probe_is_told_of_with_its_free_answer(two_nights: tuple[str, Path, Path]) -> None:
    found = _metrics(two_nights[2])["probes"]
    assert [line["id"] for line in found] == [f"p{n}" for n in range(5)]
    assert [line["group"] for line in found] == list(GROUPS)
    for line in found:
        assert set(line) == {"id", "memory", "group", "form", "tokens", "candidate", "served", "base"}
        for who in ("candidate", "served", "base"):
            score = line[who]
            assert set(score) == {"loss", "token_accuracy", "exact", "free", "free_exact", "free_fuzzy"}
            assert score["exact"] == (score["token_accuracy"] == 1.0)
            assert isinstance(score["free"], str) and score["free_fuzzy"] >= score["free_exact"]
    if two_nights[0] == "lora":  # taught well enough to say some; each token by itself or one after the other
        known = [line["served"]["exact"] for line in found]
        assert any(known) and not all(known)
        assert [line["served"]["free_exact"] for line in found] == known
        assert not any(line["base"]["free_exact"] for line in found)


def test_evaluate_tells_of_candidate_and_base(two_nights: tuple[str, Path, Path], tmp_path: Path) -> None:
    method, one, two = two_nights
    jobs.write_job(
        tmp_path / "job",
        [],
        [],
        recipe=jobs.recipe(method=method),
        kind="evaluate",
        probes=_probes(),
        parent=jobs.checkpoint(one),
        served=jobs.checkpoint(two),
    )
    told = jobs.run(tmp_path / "job").metrics
    before, after = jobs.result(one).metrics, jobs.result(two).metrics
    for group in GROUPS:
        assert told[f"candidate.{group}.loss"] == pytest.approx(before[f"candidate.{group}.loss"], rel=1e-4)
        assert told[f"served.{group}.loss"] == pytest.approx(after[f"candidate.{group}.loss"], rel=1e-4)
        assert told[f"base.{group}.loss"] == pytest.approx(before[f"base.{group}.loss"], rel=1e-4)


@pytest.mark.parametrize("ours", ["lora", "full"])
def test_a_served_version_beside_a_new_chain(
    two_nights: tuple[str, Path, Path], tmp_path: Path, ours: str
) -> None:
    """Of another method or rank: it is opened on its own, and only scored."""
    job = tmp_path / "job"
    served = jobs.checkpoint(two_nights[1])
    recipe = jobs.recipe(method=ours, lora_rank=2)
    jobs.write_job(job, jobs.some_samples(4), recipe=recipe, probes=_probes(), served=served)
    jobs.write_job(tmp_path / "plain", jobs.some_samples(4), recipe=recipe)
    told = jobs.run(job)
    assert told.exit_code == ExitCode.DONE, told.reason
    before = jobs.result(two_nights[1]).metrics
    assert told.metrics["served.old.loss"] == pytest.approx(before["candidate.old.loss"], rel=1e-4)
    assert told.metrics["base.old.loss"] == pytest.approx(before["base.old.loss"], rel=1e-4)
    jobs.run(tmp_path / "plain")
    _assert_equal_training(job, tmp_path / "plain")


def test_a_served_version_that_is_not_the_one_named(tmp_path: Path) -> None:
    jobs.write_job(tmp_path / "one", jobs.some_samples(4), recipe=jobs.recipe())
    jobs.run(tmp_path / "one")
    for name in ("torn", "other", "no mean"):
        job = tmp_path / name
        spec = jobs.write_job(
            job,
            jobs.some_samples(4),
            recipe=jobs.recipe(),
            probes=_probes(),
            served=jobs.checkpoint(tmp_path / "one"),
            served_weights="ema" if name == "no mean" else "raw",
        )
        if name == "torn":
            (job / names.SERVED / names.ADAPTER_WEIGHTS).unlink()
        elif name == "other":
            (job / names.SPEC).write_bytes(spec.model_copy(update={"served": "0" * 64}).to_bytes())
    reasons = [str(jobs.run(tmp_path / name).reason) for name in ("torn", "other", "no mean")]
    assert reasons == [
        "the served checkpoint is torn: adapter_model.safetensors is missing",
        "the checkpoint in served is not the one that spec.json names",
        "served holds no running mean of its weights (ema.safetensors): use the raw ones",
    ]


# --- scoring and training ------------------------------------------------------------------------------


def _assert_equal_training(one: Path, other: Path) -> None:
    first, second = (jobs.file_hashes(jobs.checkpoint(job)) for job in (one, other))
    assert set(first) == set(second)
    for name in set(first) - {names.MANIFEST, names.STATE}:  # those name the spec
        assert first[name] == second[name], name


@pytest.mark.parametrize("method", ["lora", "full"])
def test_scoring_reaches_no_bit_of_training(tmp_path: Path, method: str) -> None:
    """With dropout, saved after every step, from a parent: with probes as without."""
    recipe = jobs.recipe(method=method, lora_dropout=0.1, ema_decay=0.5, full_ema_decay=0.5)
    jobs.write_job(tmp_path / "parent", jobs.some_samples(4), recipe=recipe)
    jobs.run(tmp_path / "parent")
    parent = jobs.checkpoint(tmp_path / "parent")
    for name, probes in (("plain", []), ("scored", _probes(free=True))):
        jobs.write_job(
            tmp_path / name,
            jobs.some_samples(8, start=9),
            recipe=recipe,
            probes=probes,
            parent=parent,
            parent_weights="ema",
            max_new_tokens=4,
        )
        assert jobs.run(tmp_path / name).exit_code == ExitCode.DONE
    _assert_equal_training(tmp_path / "scored", tmp_path / "plain")


def test_what_was_before_is_measured_once(tmp_path: Path) -> None:
    job = tmp_path / "job"
    jobs.write_job(
        job, jobs.some_samples(12), recipe=jobs.recipe(num_train_epochs=12, save_steps=2), probes=_probes()
    )
    process = ForkedTrainer(job)
    jobs.wait_for_step(job, 6, process)
    process.kill()
    process.wait()
    path = job / names.BEFORE
    stamp = path.stat()
    stored = json.loads(path.read_bytes())
    assert jobs.run(job).exit_code == ExitCode.DONE
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    for line in _metrics(job)["probes"]:
        assert line["base"] == stored["base"][line["id"]] and line["served"] == stored["served"][line["id"]]
        assert line["candidate"]["loss"] < line["base"]["loss"]
    assert not any(line.note == "before training" for line in jobs.progress(job)[-5:])


@pytest.mark.parametrize("damage", ["gone", "torn", "of another spec"])
def test_lost_scores_of_before_are_measured_apart(
    two_nights: tuple[str, Path, Path], tmp_path: Path, damage: str
) -> None:
    """The model that goes on has learnt already: parent and base are opened once more."""
    done = two_nights[2]
    job = tmp_path / "job"
    shutil.copytree(done, job)
    for name in (names.RESULT, names.METRICS):
        (job / name).unlink()
    if damage == "gone":
        (job / names.BEFORE).unlink()
    elif damage == "torn":
        (job / names.BEFORE).write_bytes((job / names.BEFORE).read_bytes()[:100])
    else:
        stored = json.loads((job / names.BEFORE).read_bytes())
        (job / names.BEFORE).write_text(json.dumps({**stored, "spec_sha256": "0" * 64}))
    told, before = jobs.run(job).metrics, jobs.result(done).metrics
    assert told == pytest.approx(before, rel=1e-4)


def test_a_probe_that_cannot_be_asked_is_told_before_training(tmp_path: Path) -> None:
    job = tmp_path / "job"
    jobs.write_job(
        job, jobs.some_samples(3), recipe=jobs.recipe(), probes=[{**_probes(1)[0], "answer": " \n"}]
    )
    told = jobs.run(job)
    assert told.exit_code == ExitCode.BAD_SPEC
    assert told.reason == "probe p0: its answer is blank"
    assert not jobs.training_steps(job)


# --- losses --------------------------------------------------------------------------------------------


def test_losses_of_each_sample(tmp_path: Path) -> None:
    """One line a step, before the step; weighted by tokens they are the step's loss, packed or not."""
    found = {}
    for packing in (True, False):
        job = tmp_path / str(packing)
        samples = [*jobs.some_samples(6), jobs.sample("long", "Tell me.", "A long answer goes on. " * 60)]
        recipe = jobs.recipe(packing=packing, num_train_epochs=2, micro_batch_tokens=160, lora_dropout=0.0)
        jobs.write_job(job, samples, [[0, 1, 2, 3, 4, 5, 6], [6, 0, 0]], recipe=recipe)
        assert jobs.run(job).exit_code == ExitCode.DONE
        told = [json.loads(line) for line in (job / names.LOSSES).read_text().splitlines()]
        assert [line["step"] for line in told] == [1, 2, 3]
        assert [[sample for sample, _ in line["losses"]] for line in told] == [
            [0, 1, 2, 3],
            [4, 5, 6],
            [6, 0, 0],
        ]
        rendered = [json.loads(line) for line in (job / names.RENDERED).read_text().splitlines()]
        assert len(rendered[6]["sequences"]) > 1  # the long one is learnt in parts, and told of as one
        for line, step in zip(told, jobs.training_steps(job), strict=True):
            tokens = [rendered[sample]["loss_tokens"] for sample, _ in line["losses"]]
            total = sum(n * loss for n, (_, loss) in zip(tokens, line["losses"], strict=True))
            assert total / sum(tokens) == pytest.approx(step.loss, rel=1e-4)
        assert told[2]["losses"][1] == told[2]["losses"][2]
        found[packing] = [loss for line in told for _, loss in line["losses"]]
    assert found[True] == pytest.approx(found[False], rel=1e-3)


def test_losses_of_steps_taken_again_are_cut(tmp_path: Path) -> None:
    from trainer.losses import LossLog

    log = LossLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, [4, 2], [1.5, 0.25])
    log.close()
    with (tmp_path / names.LOSSES).open("a") as file:
        file.write('{"step": 4, "los')
    log = LossLog(tmp_path, 2)
    log.write(3, [1], [0.5])
    log.sync()
    log.close()
    told = [json.loads(line) for line in (tmp_path / names.LOSSES).read_text().splitlines()]
    assert [line["step"] for line in told] == [1, 2, 3] and told[2]["losses"] == [[1, 0.5]]


# --- the double ----------------------------------------------------------------------------------------


def test_the_double_tells_the_same_names(two_nights: tuple[str, Path, Path], tmp_path: Path) -> None:
    """What tests of the daemon see has the shape of what a trainer says."""
    import subprocess
    import sys

    double = Path(__file__).parents[1] / "doubles" / "fake_trainer.py"
    job = tmp_path / "jobs" / "1"
    recipe = jobs.recipe(num_train_epochs=20)
    jobs.write_job(job, jobs.some_samples(5), recipe=recipe, probes=_probes(free=True))
    (job.parent / "figures.json").write_text('{"candidate.old.token_accuracy": 0.25}')
    (job.parent / "fault").write_text("metrics:figures.json\nweights:ema\n")
    done = subprocess.run(
        [sys.executable, str(double), str(job)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told, real = jobs.result(job), jobs.result(two_nights[2])
    assert set(told.metrics) == set(real.metrics) and told.weights == "ema"
    assert told.metrics["candidate.old.token_accuracy"] == 0.25
    assert told.metrics["served.old.token_accuracy"] > 0.25
    for ours, theirs in zip(_metrics(job)["probes"], _metrics(two_nights[2])["probes"], strict=True):
        assert set(ours) == set(theirs) and set(ours["candidate"]) == set(theirs["candidate"])
    line = json.loads((job / names.LOSSES).read_text().splitlines()[-1])
    assert line["step"] == 40 and [sample for sample, _ in line["losses"]] == [4]
