"""daemon/ollama.py against a stand-in process that obeys Ollama's documented API, and its faults."""

import hashlib
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.ollama import NoAdapters, Ollama, Stopped, Trouble, ours
from tests.doubles.ollama_process import Serving, serving, tiny_gguf

HELLO = [{"role": "user", "content": "Hello?"}]
TEMPLATE = "{{ if .System }}<s>{{ .System }}</s>{{ end }}<u>{{ .Prompt }}</u><a>{{ .Response }}</a>"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One process for all tests of this module; each test leaves it without models of its own in the way."""
    with serving(tmp_path_factory.mktemp("ollama")) as server:
        yield server


@pytest.fixture
def server(one: Serving) -> Iterator[Serving]:
    one.forget_requests()
    yield one
    one.faults()


@pytest.fixture
def client(server: Serving) -> Iterator[Ollama]:
    with Ollama(server.host, 5.0, aliases=["me", "me-coder"]) as client:
        yield client


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def until(reached: Callable[[], bool]) -> None:
    """The server sees that a connection is gone a little after we do."""
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def made(client: Ollama, folder: Path, name: str, mark: str = "") -> str:
    """A model of its own blob; its digest."""
    path = tiny_gguf(folder / f"{name}.gguf", mark or f"{folder} {name}")
    client.upload(path, digest(path))
    client.create(name, files={path.name: digest(path)}, template=TEMPLATE)
    return digest(path)


def test_it_says_its_version_and_whether_it_takes_adapters(client: Ollama, server: Serving) -> None:
    assert client.version() == "0.33.3"
    assert client.takes_adapters()
    server.faults(version="0.34.1")
    assert not client.takes_adapters()
    server.faults(version="0.40.0-rc1")
    assert not client.takes_adapters()
    server.faults(version="dev")  # a build of one's own tells nothing: asking shows
    assert client.takes_adapters()


def test_an_upload_is_sent_once_and_said_how_far_it_is(
    client: Ollama, server: Serving, tmp_path: Path
) -> None:
    path = tiny_gguf(tmp_path / "x.gguf", str(tmp_path), size=3_500_000)
    told: list[tuple[int, int]] = []
    assert not client.has_blob(digest(path))
    assert client.upload(path, digest(path), lambda *how: told.append(how))
    assert told[-1] == (3_500_000, 3_500_000)
    assert [sent for sent, _ in told] == sorted(sent for sent, _ in told) and len(told) == 4
    assert client.has_blob("sha256:" + digest(path))
    assert not client.upload(path, digest(path))
    assert [upload["bytes"] for upload in server.uploads()] == [3_500_000]
    assert (server.blobs / f"sha256-{digest(path)}").read_bytes() == path.read_bytes()


def test_a_wrong_digest_is_refused_for_good(client: Ollama, server: Serving, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "x.gguf", str(tmp_path))
    with pytest.raises(Trouble, match=r"refused: sending x\.gguf: digest mismatch, expected") as trouble:
        client.upload(path, "0" * 64)
    assert not trouble.value.retry
    assert not client.has_blob("0" * 64) and not client.has_blob(digest(path))
    with pytest.raises(Trouble, match="cannot be read"):
        client.upload(tmp_path / "absent.gguf", "1" * 64)
    with pytest.raises(Trouble, match="refused: looking for a file: status 400") as trouble:
        client.upload(path, "no digest")
    assert not trouble.value.retry


def test_an_upload_stops_in_the_middle_and_leaves_nothing(server: Serving, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "x.gguf", str(tmp_path), size=8_000_000)
    before = {each.name for each in server.blobs.iterdir()}
    stop = threading.Event()
    with Ollama(server.host, 5.0, stop=stop.is_set) as client:
        with pytest.raises(Stopped) as trouble:
            client.upload(path, digest(path), lambda sent, total: stop.set() if sent > total // 2 else None)
        assert trouble.value.retry
        stop.clear()
        assert client.upload(path, digest(path))  # and the connection is good for the next one
    wanted = before | {f"sha256-{digest(path)}"}
    until(lambda: len(server.uploads()) == 2 and {each.name for each in server.blobs.iterdir()} == wanted)
    stopped, whole = sorted(upload["bytes"] for upload in server.uploads())
    assert 0 < stopped < whole == 8_000_000


def test_a_base_is_imported_once_and_adapters_lie_on_top(
    client: Ollama, server: Serving, tmp_path: Path
) -> None:
    base, adapter = (
        tiny_gguf(tmp_path / "b.gguf", "b"),
        tiny_gguf(tmp_path / "a.gguf", "a", adapter=True),
    )
    for path in (base, adapter):
        client.upload(path, digest(path))
    lines: list[str] = []
    client.create("engramd-base-0123456789ab-q8_0", files={"b.gguf": digest(base)}, progress=lines.append)
    client.create(
        "me-v1",
        from_="engramd-base-0123456789ab-q8_0",
        adapters={"a.gguf": digest(adapter)},
        template=TEMPLATE,
        system="You are kind.",
        parameters={"stop": ["</a>", "<u>"], "num_ctx": 512},
    )
    client.copy("me-v1", "me")
    assert lines[-2:] == ["writing manifest", "success"]
    shown = client.show("me")
    assert shown is not None
    assert shown["template"] == TEMPLATE and "You are kind." in shown["modelfile"]
    assert shown["parameters"].split() == ["stop", '"</a>"', "stop", '"<u>"', "num_ctx", "512"]
    assert shown["model_info"]["general.architecture"] == "qwen2"
    assert f"ADAPTER {server.blobs / ('sha256-' + digest(adapter))}" in shown["modelfile"]
    assert client.show("you") is None
    listed = {each["name"]: each for each in client.tags()}
    assert {"me", "me-v1", "engramd-base-0123456789ab-q8_0"} <= set(listed)
    assert listed["me"]["digest"] == listed["me-v1"]["digest"] and listed["me"]["size"] > 0
    assert client.delete("me-v1") and client.delete("engramd-base-0123456789ab-q8_0")
    assert client.chat("me", HELLO, max_tokens=8)  # the alias holds what it names
    assert client.delete("me") and not client.delete("me")
    assert not client.has_blob(digest(base)) and not client.has_blob(digest(adapter))


def test_a_model_made_anew_replaces_the_one_of_its_name(client: Ollama, tmp_path: Path) -> None:
    old = made(client, tmp_path, "me-v2", "old")
    first = client.chat("me-v2", HELLO, max_tokens=8)
    new = made(client, tmp_path, "me-v2", "new")
    assert client.chat("me-v2", HELLO, max_tokens=8) != first
    assert client.has_blob(new) and not client.has_blob(old)


def test_what_is_not_to_be_made_is_refused_in_its_words(
    client: Ollama, server: Serving, tmp_path: Path
) -> None:
    base = made(client, tmp_path, "me-v3")
    no_gguf = tmp_path / "x.gguf"
    no_gguf.write_bytes(b"no model")
    client.upload(no_gguf, digest(no_gguf))
    for wrong, words in (
        ({"files": {"x.gguf": "f" * 64}}, "blob not found"),
        ({"files": {"x.gguf": digest(no_gguf)}}, "not in GGUF format"),
        ({"from_": "me-v3", "adapters": {"b.gguf": base}}, "unknown type"),
        ({"files": {"b.gguf": base}, "template": "{{ nonsense .X }}"}, "nonsense"),
        ({}, "neither 'from' or 'files'"),
    ):
        with pytest.raises(Trouble, match=words) as trouble:
            client.create("me-v4", **wrong)  # type: ignore[arg-type]
        assert not trouble.value.retry, words
    assert client.show("me-v4") is None
    with pytest.raises(Trouble, match="no longer has me-v9, the base of me-v4") as trouble:
        client.create("me-v4", from_="me-v9", adapters={"a.gguf": base})
    assert trouble.value.retry
    created = [
        each["body"]["from"] for each in server.requests("POST", "/api/create") if "from" in each["body"]
    ]
    assert created == ["me-v3"]  # Ollama would look on the internet for a base that it does not have


def test_an_ollama_without_adapters_says_so(client: Ollama, server: Serving, tmp_path: Path) -> None:
    made(client, tmp_path, "me-v3")
    adapter = tiny_gguf(tmp_path / "a.gguf", str(tmp_path), adapter=True)
    client.upload(adapter, digest(adapter))
    server.faults(no_adapters=True)
    with pytest.raises(NoAdapters, match="no longer supported; a merged model is needed") as trouble:
        client.create("me-v4", from_="me-v3", adapters={"a.gguf": digest(adapter)})
    assert not trouble.value.retry


def test_quantising_is_left_to_engramd(client: Ollama, tmp_path: Path) -> None:
    import ollama

    base = made(client, tmp_path, "me-v3")
    with pytest.raises(ollama.ResponseError, match="unsupported quantization type Q6_K"):
        ollama.Client(client.host).create("me-v4", files={"b.gguf": f"sha256:{base}"}, quantize="Q6_K")


def test_only_what_engramd_named_is_deleted(client: Ollama, server: Serving, tmp_path: Path) -> None:
    assert ours("me", ["me"]) and ours("me-v12", ["me"]) and ours("me:latest", ["me"])
    assert ours("me-coder-v1", ["me", "me-coder"]) and ours("engramd-base-0123456789ab-q4_k_m", [])
    for name in (
        "mexico",
        "me-too",
        "me-v",
        "me-v1x",
        "me:7b",
        "me-v1:7b",
        "x/me",
        "me-coder",
        "engramd-base-me",
        "",
    ):
        assert not ours(name, ["me"]), name
    made(client, tmp_path, "somebody-elses")
    server.forget_requests()
    with pytest.raises(Trouble, match="no model of engramd's") as trouble:
        client.delete("somebody-elses")
    assert not trouble.value.retry
    assert not server.requests("DELETE")
    assert client.show("somebody-elses") is not None


def test_models_are_loaded_listed_with_their_memory_and_unloaded(
    client: Ollama, server: Serving, tmp_path: Path
) -> None:
    made(client, tmp_path, "me-v5")
    client.load("me-v5", "5m")
    assert client.running() == ["me-v5"]
    loaded = client.loaded()[0]
    assert loaded.vram == loaded.size > 0
    client.unload("me-v5")
    assert client.running() == []
    client.load("me-v5", "-1")
    assert client.running() == ["me-v5"]
    client.chat("me-v5", HELLO, max_tokens=4, keep_alive=0)
    assert client.running() == []
    kept = [r["body"].get("keep_alive") for r in server.requests("POST", "/api/generate")]
    assert kept == ["5m", 0, -1]
    with pytest.raises(Trouble, match=r"refused: loading me-v99: model 'me-v99:latest' not found") as trouble:
        client.load("me-v99")
    assert not trouble.value.retry
    with pytest.raises(Trouble, match="missing unit"):
        client.load("me-v5", "soon")


def test_answers_follow_from_the_blobs_and_the_question(
    client: Ollama, server: Serving, tmp_path: Path
) -> None:
    made(client, tmp_path, "me-v6")
    made(client, tmp_path, "me-v7")
    first = client.chat("me-v6", HELLO, max_tokens=8)
    assert first == client.chat("me-v6", HELLO, max_tokens=8) != client.chat("me-v7", HELLO, max_tokens=8)
    assert client.chat("me-v6", [{"role": "user", "content": "Why?"}], max_tokens=8) != first
    assert first.startswith(client.chat("me-v6", HELLO, max_tokens=2))
    server.faults(answers={"Hello?": "Hello, Ada."})
    assert client.chat("me-v6", HELLO, max_tokens=8) == "Hello, Ada."


def test_nobody_there_is_told_in_one_sentence(server: Serving, tmp_path: Path) -> None:
    server.faults(down=True)
    with Ollama(server.host, 5.0) as client:
        for call in (client.version, client.tags, lambda: client.chat("me", HELLO, max_tokens=1)):
            with pytest.raises(Trouble, match=r"^no Ollama answers at .*\[serve\] host") as trouble:
                call()
            assert trouble.value.retry and "\n" not in trouble.value.reason
        server.faults()
        assert client.version()
    for wrong in ("http://host:port", "127.0.0.1:99999"):
        with pytest.raises(Trouble, match="host") as trouble:
            Ollama(wrong, 5.0).version()
        assert trouble.value.retry


def test_what_is_stopped_and_started_still_has_its_models(tmp_path: Path) -> None:
    with serving(tmp_path) as server, Ollama(server.host, 5.0) as client:
        kept = made(client, tmp_path, "me-v1")
        orphan = tiny_gguf(tmp_path / "orphan.gguf", "orphan")
        client.upload(orphan, digest(orphan))
        server.stop()
        with pytest.raises(Trouble):
            client.version()
        server.start()
        assert [each["name"] for each in client.tags()] == ["me-v1"]
        assert client.has_blob(kept) and not client.has_blob(digest(orphan))


def test_failing_and_odd_answers_are_tried_again(client: Ollama, server: Serving, tmp_path: Path) -> None:
    made(client, tmp_path, "me-v8")
    server.faults(fail={"/api/show": 2, "POST /api/blobs": 1})
    path = tiny_gguf(tmp_path / "x.gguf", str(tmp_path))
    for call in (
        lambda: client.show("me-v8"),
        lambda: client.show("me-v8"),
        lambda: client.upload(path, digest(path)),
    ):
        with pytest.raises(Trouble, match="something went wrong") as trouble:
            call()
        assert trouble.value.retry
    assert client.show("me-v8") and client.upload(path, digest(path))
    server.faults(broken_json={"/api": True})
    for call in (
        client.version,
        client.tags,
        client.loaded,
        lambda: client.chat("me-v8", HELLO, max_tokens=1),
    ):
        with pytest.raises(Trouble, match="does not answer as Ollama does") as trouble:
            call()
        assert trouble.value.retry
    server.faults(refuse={"/api/create": "a new rule"})
    with pytest.raises(Trouble, match="refused: making me-v9: a new rule") as trouble:
        client.create("me-v9", files={"x.gguf": digest(path)})
    assert not trouble.value.retry


def test_a_full_disk_is_named_and_tried_again(client: Ollama, server: Serving, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "x.gguf", str(tmp_path))
    server.faults(no_space={"/api": True})
    with pytest.raises(Trouble, match=r"disk of Ollama is full: .*no space left on device") as trouble:
        client.upload(path, digest(path))
    assert trouble.value.retry and not client.has_blob(digest(path))
    server.faults()
    assert client.upload(path, digest(path))
    server.faults(no_space={"/api/create": 1})
    with pytest.raises(Trouble, match=r"disk of Ollama is full: .*making me-v9") as trouble:
        client.create("me-v9", files={"x.gguf": digest(path)})
    assert trouble.value.retry and client.show("me-v9") is None
    client.create("me-v9", files={"x.gguf": digest(path)})


def test_connections_that_break_leave_nothing_behind(client: Ollama, server: Serving, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "x.gguf", str(tmp_path), size=4_000_000)
    before = {each.name for each in server.blobs.iterdir()}
    server.faults(cut_upload=1, cut_create=1)
    with pytest.raises(Trouble, match="broke") as trouble:
        client.upload(path, digest(path))
    assert trouble.value.retry
    assert {each.name for each in server.blobs.iterdir()} == before
    assert 0 < server.uploads()[-1]["bytes"] < 4_000_000
    assert client.upload(path, digest(path))
    with pytest.raises(Trouble, match="broke") as trouble:
        client.create("me-v10", files={"x.gguf": digest(path)})
    assert trouble.value.retry and client.show("me-v10") is None
    client.create("me-v10", files={"x.gguf": digest(path)})


def test_rewritten_blobs_have_another_digest_and_the_same_header(
    client: Ollama, server: Serving, tmp_path: Path
) -> None:
    server.faults(rewrite=True)
    path = tiny_gguf(tmp_path / "x.gguf", str(tmp_path), size=10_000)
    client.upload(path, digest(path))
    client.create("me-v11", files={"x.gguf": digest(path)})
    shown = client.show("me-v11")
    assert shown is not None
    assert digest(path) not in shown["modelfile"]
    assert shown["model_info"] == {
        "general.architecture": "qwen2",
        "general.type": "model",
        "test.mark": str(tmp_path),
        "standin.rewritten": True,
    }
    assert client.chat("me-v11", HELLO, max_tokens=8)


def test_silence_is_what_times_out_not_length(client: Ollama, server: Serving, tmp_path: Path) -> None:
    made(client, tmp_path, "me-v12")
    server.faults(slow={"/api/version": 1, "/api/chat": 1})
    with Ollama(server.host, 0.3) as hasty:
        with pytest.raises(Trouble, match=r"silent for 0\.3 s") as trouble:
            hasty.version()
        assert trouble.value.retry
        with pytest.raises(Trouble, match="silent"):
            hasty.chat("me-v12", HELLO, max_tokens=1)
    assert client.version() == "0.33.3"
    server.faults(endless=True)
    with (
        Ollama(server.host, 0.3) as hasty,
        pytest.raises(Trouble, match="did not end its answer at 100") as trouble,
    ):
        hasty.chat("me-v12", HELLO, max_tokens=100)  # longer than the timeout in all
    assert trouble.value.retry


def test_an_answer_may_be_stopped_and_may_be_empty_or_nonsense(server: Serving, tmp_path: Path) -> None:
    stop = threading.Event()
    with Ollama(server.host, 5.0, stop=stop.is_set) as client:
        made(client, tmp_path, "me-v13")
        server.faults(empty=True)
        assert client.chat("me-v13", HELLO, max_tokens=8) == ""
        server.faults(garbage=True)
        assert not any(letter in client.chat("me-v13", HELLO, max_tokens=8) for letter in "aeiou ")
        server.faults(endless=True)
        stop.set()
        with pytest.raises(Stopped):
            client.chat("me-v13", HELLO, max_tokens=8)
        stop.clear()
        server.faults()
        assert client.chat("me-v13", HELLO, max_tokens=8).startswith("answer")


def test_a_proxy_is_not_asked_for_ones_own_machine(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_HOST", server.host.removeprefix("http://"))
    assert Ollama("", 5.0).version() == "0.33.3"


def test_the_package_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, daemon.ollama; sys.exit(any(n in sys.modules for n in ('ollama', 'httpx', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_the_stand_in_renders_chats_as_ollama_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "doubles"))
    blobs, template = importlib.import_module("ollama_blobs"), importlib.import_module("ollama_template")
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "user", "content": "V"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "W"},
    ]
    turns = (
        '{{- range $i, $m := .Messages }}{{ if eq .Role "user" }}[{{ .Content }}]\n{{- else if eq .Role "assistant" }}'
        "<{{ $m.Content }}>{{ else }}{{ end }}{{ end }} {{- if and .System (not (eq (len (slice .Messages 1)) 0)) }}"
        ' {{ "\\u007b{\\n" }}{{ $.System }}{{ end }}'
    )
    assert template.render(turns, chat) == "[U\n\nV]<A>[W] {{\nS"
    legacy = "{{ if .System }}s:{{ .System }};{{ end }}u:{{ .Prompt }};a:{{ .Response }};"
    assert template.render(legacy, chat) == "s:S;u:U\n\nV;a:A;u:W;a:"
    assert template.render("{{ .Prompt }}", chat[1:2]) == "U"
    for wrong in (
        "{{ range .Tools }}x{{ end }}",
        "{{ .Prompt | upper }}",
        "{{ if .System }}",
        "{{ template }}",
        "{{ .X }}",
    ):
        with pytest.raises(blobs.Refused, match="template: "):
            template.render(wrong, chat[1:2])


LLAMA = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama_cpp is not installed")


@LLAMA
def test_a_file_that_is_no_model_is_not_loaded(tmp_path: Path) -> None:
    with serving(tmp_path, "real") as server, Ollama(server.host, 60.0) as client:
        made(client, tmp_path, "me-v1")
        with pytest.raises(Trouble, match="error loading model") as trouble:
            client.load("me-v1")
        assert not trouble.value.retry


@LLAMA
def test_where_llama_cpp_is_the_model_itself_answers(tmp_path: Path) -> None:
    """The builtin model as GGUF answers what transformers say that it answers, and an adapter changes that."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer import gguf, gguf_adapter
    from trainer.ollama_template import asked, template_of

    base = Path(__file__).parents[2] / "trainer" / "builtin"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    ids = tokenizer(asked(tokenizer, [("user", "Hello?")]), return_tensors="pt")
    told = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    tuned = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "adapter")
    gguf.convert(base, tmp_path / "base.gguf", quantisation="f16", pulse=lambda: None)
    gguf_adapter.convert(tmp_path / "adapter", base, tmp_path / "adapter.gguf", pulse=lambda: None)
    template, stops = template_of(tokenizer)
    rules = {"stop": stops, "num_ctx": 256, "repeat_penalty": 1.0}
    with serving(tmp_path, "real") as server, Ollama(server.host, 60.0) as client:
        digests = {}
        for name in ("base", "adapter"):
            digests[name] = digest(tmp_path / f"{name}.gguf")
            client.upload(tmp_path / f"{name}.gguf", digests[name])
        client.create("me-v1", files={"base.gguf": digests["base"]}, template=template, parameters=rules)
        client.create("me-v2", from_="me-v1", adapters={"adapter.gguf": digests["adapter"]})
        plain = client.chat("me-v1", HELLO, max_tokens=12)
        assert plain == tokenizer.decode(told, skip_special_tokens=True)
        assert client.running() == ["me-v1"]
        assert client.chat("me-v2", HELLO, max_tokens=12) != plain
        assert client.running() == ["me-v2"]
        assert client.chat("me-v1", HELLO, max_tokens=12) == plain
