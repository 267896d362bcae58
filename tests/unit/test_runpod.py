"""The place that is rented: the API's client, a job's way to a pod and back, and what is left of pods nobody wants."""

import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.compute import orders, renting, runpod, runpod_api, sweep
from daemon.compute.places import Leave, LineLost, NotNow
from daemon.compute.runpod_api import Api, Denied, PodInfo, Rejected, Unreachable
from tests import jobs
from tests.doubles.runpod_process import CANARY, RunPod
from tests.doubles.runpod_process import renting as renting_pods
from tests.renting import HOME, NAME, Sent
from trainer import names

needs_ssh = pytest.mark.usefixtures("packages_and_root")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPod]:
    """One for all: whose pods have no sshd unless a test takes the fault away. None is left between tests."""
    with renting_pods(tmp_path_factory.mktemp("account")) as one:
        yield one


@pytest.fixture
def rented(account: RunPod) -> Iterator[RunPod]:
    account.faults(no_start=True)
    yield account
    account.faults()
    api = Api(account.url, account.key)
    for pod in api.all():
        api.terminate(pod.id)
    (account.folder / "requests.jsonl").unlink(missing_ok=True)


@pytest.fixture
def api(rented: RunPod) -> Iterator[Api]:
    one = Api(rented.url, rented.key, pause=lambda seconds: None)
    yield one
    one.close()


def made(name: str = NAME) -> dict[str, Any]:
    return {"name": name, "imageName": "any"}


# -- the client ----------------------------------------------------------------------------------------


def test_a_pods_life(api: Api, rented: RunPod) -> None:
    pod = api.create(made())
    assert pod.running and pod.ip == "127.0.0.1" and pod.port and pod.cost == rented.price and pod.gpus == 1
    assert api.create(made()) == pod, "the same one"
    assert [one.id for one in api.named(NAME)] == [pod.id] and api.named("another") == []
    api.halt(pod.id, remove=False)
    stopped = api.get(pod.id)
    assert stopped is not None and not stopped.running and not rented.running()
    api.update(pod.id, {"name": "another"})
    api.start(pod.id)
    assert [one.id for one in api.named("another")] == [pod.id] and rented.running() == [pod.id]
    api.halt(pod.id, remove=True)
    assert api.get(pod.id) is None and api.all() == []
    api.stop(pod.id)
    api.terminate(pod.id)


@pytest.mark.parametrize("kind", ["fail", "lose"])
def test_one_pod_whatever_answers_are_lost(api: Api, rented: RunPod, kind: str) -> None:
    rented.faults(no_start=True, **{kind: {"POST /pods": 2, "GET /pods": 2}})
    pod = api.create(made())
    assert [one.id for one in api.all()] == [pod.id]
    assert len(rented.meter()["running"]) == 1


def test_a_pod_that_the_list_did_not_know_yet(api: Api, rented: RunPod) -> None:
    """The answer to its making was lost, and the first list after it is old: two are made, and one stays."""
    rented.faults(no_start=True, lose={"POST /pods": 1}, forget=2)
    api.create(made())
    assert len(rented.running()) == 2
    pod = api.create(made())
    assert rented.running() == [pod.id]


@pytest.mark.parametrize("status", [500, 502, 429])
def test_faults_of_the_api_are_waited_out(rented: RunPod, status: int) -> None:
    waited: list[float] = []
    rented.faults(status={"GET /pods": status})

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            rented.faults(no_start=True)

    assert Api(rented.url, rented.key, pause).all() == []
    assert waited == sorted(waited) and len(waited) == 3


def test_an_api_that_never_answers(api: Api, rented: RunPod) -> None:
    rented.faults(status={"GET /pods": 503})
    with pytest.raises(Unreachable, match="503"):
        api.all()
    assert len(rented.calls("GET /pods")) == runpod_api.TRIES
    with pytest.raises(Unreachable, match="cannot be reached"):
        Api("http://127.0.0.1:9/v1", rented.key, lambda seconds: None).all()


def test_what_the_api_refuses_is_not_tried_again(api: Api, rented: RunPod) -> None:
    rented.faults(refuse={"POST /pods": f"no \x1b[31msuch GPU, {CANARY}\n is free"})
    with pytest.raises(Rejected) as told:
        api.create(made())
    assert "such GPU" in str(told.value) and CANARY not in str(told.value)
    assert "\x1b" not in str(told.value) and "\n" not in str(told.value)
    assert len(rented.calls("POST /pods")) == 1
    with pytest.raises(Denied, match="RUNPOD_API_KEY"):
        Api(rented.url, "wrong", lambda seconds: None).all()


def test_a_stop_is_believed_when_it_is_seen(api: Api, rented: RunPod) -> None:
    pod = api.create(made())
    rented.faults(no_start=True, lie={f"POST /pods/{pod.id}/stop": 2})
    api.halt(pod.id, remove=False)
    assert not rented.running()
    api.start(pod.id)
    rented.faults(no_start=True, lie={f"POST /pods/{pod.id}/stop": True})
    with pytest.raises(Unreachable, match="and it is not"):
        api.halt(pod.id, remove=False)


@pytest.mark.parametrize(
    "told",
    [None, [], "x", {}, {"id": "../../etc"}, {"id": ""}, {"id": "a b"}],
)
def test_what_is_no_pod(told: Any) -> None:
    assert runpod_api._pod(told) is None


def test_what_a_pod_tells_is_taken_only_in_its_form() -> None:
    told = {"id": "a", "name": "n", "desiredStatus": "RUNNING", "publicIp": "-oProxyCommand=evil", "costPerHr": "0.74",
            "portMappings": {"22": "-1"}}  # fmt: skip
    assert runpod_api._pod(told) == PodInfo("a", "n", "RUNNING", None, None, 0.74, None)


def test_where_the_key_comes_from(tmp_path: Path) -> None:
    assert runpod_api.key({"RUNPOD_API_KEY": " one\n"}) == "one"
    with pytest.raises(Denied, match="no key"):
        runpod_api.key({})
    with pytest.raises(Denied, match="no key"):
        runpod_api.key({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    (tmp_path / "runpod_api_key").write_text("two\n")
    assert runpod_api.key({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "two"


# -- what a pod is made of -----------------------------------------------------------------------------


def test_a_pod_is_given_its_end(tmp_path: Path, rented: RunPod) -> None:
    sent = Sent(tmp_path, rented, gpu=["NVIDIA A40", "NVIDIA L40S"], gpus=2, template="tmpl", image="")
    order = orders.read(sent.job)
    now = time.time()
    body = renting.body(order, now, renting.public_key_of(str(rented.identity)))
    assert body["gpuTypeIds"] == ["NVIDIA A40", "NVIDIA L40S"] and body["gpuCount"] == 2
    assert body["templateId"] == "tmpl" and "imageName" not in body and body["ports"] == ["22/tcp"]
    until = int(body["env"]["ENGRAMD_UNTIL"])
    assert order.until - renting.STOP_MOST - 1 <= until < order.until
    assert int(body["env"]["ENGRAMD_SECONDS"]) <= until - now + 1
    assert body["env"]["PUBLIC_KEY"].startswith("ssh-ed25519 ")
    assert CANARY not in json.dumps(body) and "PRIVATE" not in json.dumps(body)
    assert subprocess.run(["bash", "-n", "-c", body["dockerStartCmd"][2]], check=True)
    assert renting.public_key_of("") == "" and renting.public_key_of(str(tmp_path / "none")) == ""


# -- a place, without a line -----------------------------------------------------------------------------


@pytest.fixture
def key(rented: RunPod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", rented.key)
    monkeypatch.setattr(runpod, "LOOK", 0.05)


def refused(sent: Sent, say: Callable[[str], None] = lambda note: None) -> str:
    with pytest.raises(NotNow) as told:
        runpod.Pod(orders.read(sent.job)).prepare(sent.job, say)
    assert not sent.runpod.running(), "its meter stands"
    assert "\n" not in str(told.value) and CANARY not in str(told.value)
    return str(told.value)


@pytest.mark.usefixtures("key")
@needs_ssh
@pytest.mark.parametrize(
    ("settings", "faults", "said"),
    [
        ({"price_per_hour": 0.0}, {}, "price_per_hour is 0"),
        ({"image": ""}, {}, "set one of them"),
        ({}, {"cost": 9.9}, "costs $9.90 an hour, and compute.runpod.price_per_hour is $3.60"),
        ({"start_minutes": 0.005}, {"never_ssh": True}, "did not open its SSH port"),
        ({"start_minutes": 0.01}, {}, "SSH port within compute.runpod.start_minutes, and was removed"),
        ({}, {"refuse": {"POST /pods": "There are no instances"}}, "There are no instances"),
    ],
)
def test_why_nothing_is_rented(
    tmp_path: Path, rented: RunPod, settings: dict[str, Any], faults: dict[str, Any], said: str
) -> None:
    sent = Sent(tmp_path, rented, **settings)
    rented.faults(no_start=True, **faults)
    assert said in refused(sent)
    assert sent.rent().since is None


@pytest.mark.usefixtures("key")
def test_nothing_is_rented_once_its_time_is_over(tmp_path: Path, rented: RunPod) -> None:
    sent = Sent(tmp_path, rented)
    sent.order(1.0)
    assert "time that was paid" in refused(sent)
    assert not rented.calls("POST /pods")


def test_without_a_key_nothing_is_asked(tmp_path: Path, rented: RunPod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    assert "there is no key" in refused(Sent(tmp_path, rented))
    assert not rented.calls()


@pytest.mark.usefixtures("key")
def test_a_stop_while_it_starts_stops_the_meter(tmp_path: Path, rented: RunPod) -> None:
    sent = Sent(tmp_path, rented)
    rented.faults(no_start=True, never_ssh=True)

    def say(note: str) -> None:
        if rented.running():
            raise Leave

    with pytest.raises(Leave):
        runpod.Pod(orders.read(sent.job)).prepare(sent.job, say)
    assert not rented.running() and sent.rent().since is None
    assert sent.rent().dollars >= rented.meter()["pods"][sent.rent().pod]["dollars"]


@pytest.mark.usefixtures("key")
def test_a_pod_that_is_gone_is_no_lost_line(tmp_path: Path, rented: RunPod) -> None:
    sent = Sent(tmp_path, rented)
    place = runpod.Pod(orders.read(sent.job))
    place._job, place._rent = sent.job, renting.read(sent.job)
    pod = place._find_or_make()
    place._look(LineLost("cut"))  # it runs: the line will come back
    rented.faults(no_start=True, fail={f"GET /pods/{pod.id}": True})
    place._look(LineLost("cut"))  # nobody can tell
    rented.faults(no_start=True)
    Api(rented.url, rented.key).stop(pod.id)
    with pytest.raises(NotNow, match="stopped before the job was home"):
        place._look(LineLost("cut"))
    assert sent.rent().since is None


@pytest.mark.usefixtures("key")
def test_a_stopped_pod_of_this_home_is_used_again(tmp_path: Path, rented: RunPod, api: Api) -> None:
    other = api.create(made(f"engramd-{'f' * 12}-11111111-1"))
    old = api.create(made(f"engramd-{HOME}-11111111-7"))
    for one in (other, old):
        api.stop(one.id)
    sent = Sent(tmp_path, rented, after="stop")
    place = runpod.Pod(orders.read(sent.job))
    place._job = sent.job
    assert place._find_or_make().id == old.id
    told = json.loads(json.dumps(rented.calls(f"PATCH /pods/{old.id}")[0]["body"]))
    assert told["name"] == NAME and int(told["env"]["ENGRAMD_UNTIL"]) > time.time()
    assert rented.running() == [old.id]
    place._halt(remove=False)
    rented.faults(no_start=True, refuse={f"POST /pods/{old.id}/start": "not enough free GPUs"})
    again = place._find_or_make()
    assert again.id != old.id and rented.running() == [again.id], "its machine has no GPU left: another one"
    assert sorted(one.id for one in api.all()) == sorted([other.id, again.id])


# -- the sweep -------------------------------------------------------------------------------------------


def swept(rented: RunPod, api: Api, **told: Any) -> sweep.Told:
    given = {"api": rented.url, "home": HOME, "remove": True, "attempts": [], "kept": [], **told}
    return sweep.sweep(sweep.Asked.model_validate(given), api, time.time())


def test_pods_of_this_home_alone_are_decided_upon(tmp_path: Path, rented: RunPod, api: Api) -> None:
    names_ = {kind: f"engramd-{HOME}-11111111-{number}" for number, kind in enumerate(("kept", "over", "busy"))}
    pods = {kind: api.create(made(name)).id for kind, name in names_.items()}
    others = [api.create(made(name)).id for name in (f"engramd-{'f' * 12}-11111111-1", "somebody's")]
    told = swept(rented, api, kept=[names_["kept"]], busy=[names_["busy"]])
    assert {one.pod: one.what for one in told.pods} == {pods["kept"]: "kept", pods["over"]: "removed"}
    assert sorted(rented.running()) == sorted([pods["kept"], pods["busy"], *others])


def test_a_pod_rests_where_nobody_may_go_on(tmp_path: Path, rented: RunPod, api: Api) -> None:
    """In a pause, or out of hours: its meter stands, its volume with the checkpoint stays."""
    pod, now = api.create(made()), time.time()
    renting.Rent(pod=pod.id, name=NAME, since=now - 10, until=now + 60, price=3.6).write(tmp_path)
    told = swept(rented, api, attempts=[{"name": NAME, "folder": str(tmp_path)}], kept=[NAME], rest=True)
    assert [one.what for one in told.pods] == ["stopped"] and [one.name for one in told.stands] == [NAME]
    assert not rented.running() and [one.id for one in api.all()] == [pod.id]


def test_of_stopped_pods_one_is_enough(rented: RunPod, api: Api) -> None:
    for number in range(3):
        pod = api.create(made(f"engramd-{HOME}-11111111-{number}"))
        if number:
            api.stop(pod.id)
    told = swept(rented, api, remove=False)
    assert [one.what for one in told.pods] == ["stopped", "removed", "removed"]
    assert len(api.all()) == 1 and not rented.running()


def test_a_meter_stands_when_nothing_runs(tmp_path: Path, rented: RunPod, api: Api) -> None:
    pod, now = api.create(made()), time.time()
    attempt = {"name": NAME, "folder": str(tmp_path)}
    renting.Rent(pod=pod.id, name=NAME, since=now - 10, until=now + 60, price=3.6, dollars=0.5).write(tmp_path)
    assert swept(rented, api, attempts=[attempt], kept=[NAME]).stands == []
    told = swept(rented, api, attempts=[attempt]).stands[0]
    assert told.name == NAME and told.dollars == pytest.approx(0.51, abs=0.01)
    assert renting.read(tmp_path).since is None
    gone = {"name": f"{NAME}0", "folder": str(tmp_path / "none")}
    assert [one.dollars for one in swept(rented, api, attempts=[gone]).stands] == [None]


def test_a_courier_that_begins_meanwhile_keeps_its_notes(tmp_path: Path, rented: RunPod) -> None:
    """Its meter runs from now on, and the list of pods is from before."""
    begun = renting.Rent(pod="new", name=NAME, since=time.time(), until=time.time() + 60, price=3.6)
    renting.Rent(name=NAME, since=time.time() - 500, until=time.time() + 60, price=3.6).write(tmp_path)

    class Slow(Api):
        def all(self) -> list[PodInfo]:
            begun.write(tmp_path)
            return []

    attempt = {"name": NAME, "folder": str(tmp_path)}
    slow = Slow(rented.url, rented.key)
    assert swept(rented, slow, attempts=[attempt]).stands == [] and renting.read(tmp_path) == begun
    slow.close()


def test_a_pod_that_no_list_knows_yet_is_waited_for(tmp_path: Path, rented: RunPod, api: Api) -> None:
    attempt = {"name": NAME, "folder": str(tmp_path)}
    rent = renting.Rent(pod=None, name=NAME, since=time.time() - 5, until=time.time() + 60, price=3.6)
    rent.write(tmp_path)
    assert swept(rented, api, attempts=[attempt]).stands == []
    rent.since = time.time() - 2 * sweep.UNSEEN
    rent.write(tmp_path)
    assert len(swept(rented, api, attempts=[attempt]).stands) == 1


def test_the_sweep_as_a_program(rented: RunPod, api: Api) -> None:
    api.create(made())
    asked = {"api": rented.url, "home": HOME, "remove": True, "attempts": [], "kept": []}
    words = [sys.executable, "-m", "daemon.compute", "sweep"]
    env = jobs.environment(**rented.api_key())
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, env=env, cwd=jobs.ROOT)
    assert sweep.Told.model_validate_json(done.stdout).error is None and not rented.running()
    env.pop("RUNPOD_API_KEY")
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, env=env, cwd=jobs.ROOT)
    assert "there is no key" in (sweep.Told.model_validate_json(done.stdout).error or "") and done.returncode == 0


# -- a whole way -----------------------------------------------------------------------------------------


@needs_ssh
def test_a_job_goes_to_a_pod_and_comes_home(tmp_path: Path, account: RunPod) -> None:
    account.faults()
    sent = Sent(tmp_path, account, name=f"engramd-{HOME}-11111111-77")
    assert sent.run() == 0, sent.log()
    assert jobs.result(sent.job).checkpoint == "checkpoint-2" and sent.steps() == [1, 2]
    assert stat.S_IMODE((sent.job / "checkpoint-2" / names.OPTIMIZER).stat().st_mode) == 0o400
    meter = account.meter()
    assert not meter["running"] and Api(account.url, account.key).named(sent.name) == []
    report = json.loads((sent.job / "compute-report.json").read_text())
    mine = next(one for one in meter["pods"].values() if one["name"] == sent.name)
    assert mine["dollars"] <= sent.rent().dollars <= mine["dollars"] + 0.005 * account.price
    assert report["dollars"] == pytest.approx(sent.rent().dollars, abs=1e-4) and report["fetched"] > 0
    calls = [one["call"].split("/")[-1] for one in account.calls() if "GET" not in one["call"]]
    assert calls[0] == "pods" and calls[1] == "stop", "the meter stands before anything is judged"
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert CANARY.encode() not in path.read_bytes(), path
