"""The system service and its group: what a member can do, what a stranger cannot, and what each is told."""

import json

from tests.systemd.conftest import HOME, UNIT, Engramd

INBOX = f"{HOME}/inbox"


def test_a_member_uses_the_whole_command_line(engramd: Engramd) -> None:
    machine = engramd.machine
    machine.sh("mkdir -p ~/day && umask 077 && echo 'I planted three apple trees.' >~/day/a.txt", user="anna")
    machine.sh("umask 077; printf '# Monday\\n\\nThe deer ate them.\\n' >~/monday.md", user="anna")
    machine.sh("cd ~ && engramd add monday.md day", user="anna")
    told = json.loads(machine.run("engramd", "status", "--json", user="anna").stdout)
    assert told["home"] == HOME and told["daemon"]["running"] is True
    assert "promoted" in machine.run("engramd", "train", user="anna").stdout
    assert not engramd.trainers()
    told = json.loads(machine.run("engramd", "status", "--json", user="anna").stdout)
    assert told["profiles"][0]["batches"]["done"] == 2 and told["profiles"][0]["head"]["version"] == 1
    assert "apple" in machine.run("engramd", "memories", user="anna").stdout
    assert "version_promoted" in machine.run("engramd", "log", "--json", user="anna", check=False).stdout
    for words in (("jobs",), ("batches",), ("loss",), ("config",), ("profile", "list")):
        machine.run("engramd", *words, user="anna")
    assert machine.run("engramd", "ask", "What did I plant?", user="anna").stdout.strip()
    assert not machine.sh(f"find {HOME} -perm /o=rwx ! -type l")  # nothing is anybody's


def test_a_stranger_is_told_how_to_join(engramd: Engramd) -> None:
    for words in (("status",), ("add", "/etc/hostname"), ("train",)):
        said = engramd.machine.run("engramd", *words, user="bob", check=False)
        assert said.returncode == 1 and "Traceback" not in said.stderr, said.stderr
        assert "gpasswd --add bob engramd" in said.stderr, said.stderr


def test_without_the_service_nobody_works_in_its_place(engramd: Engramd) -> None:
    """Neither a member, who could not, nor root, whose files the service could not use afterwards."""
    engramd.machine.run("systemctl", "stop", UNIT)
    for user in ("anna", None):
        said = engramd.machine.run("engramd", "train", user=user, check=False)
        assert said.returncode == 1 and "systemctl start engramd" in said.stderr, said.stderr
    status = json.loads(engramd.machine.run("engramd", "status", "--json", user="anna").stdout)
    assert status["daemon"]["running"] is False
    assert engramd.machine.sh(f"find {HOME} ! -user engramd") == ""


def reason(engramd: Engramd, name: str) -> str:
    path = engramd.home.failed / "me" / f"{name}.reason.json"
    engramd.until(path.exists, 30)
    return str(json.loads(path.read_text())["reason"])


def command_in(sentence: str) -> str:
    """What it tells the owner to run, as a shell understands it."""
    told = sentence.partition("as its owner run: ")[2]
    return told.partition(" and move it back")[0].rstrip(".")


def test_a_file_that_cannot_be_read_is_refused_with_what_mends_it(engramd: Engramd) -> None:
    machine = engramd.machine
    machine.sh(f"umask 077; echo 'I saw a heron.' >~/heron.txt; mv ~/heron.txt {INBOX}/", user="anna")
    machine.sh(f"umask 077; echo 'I saw an owl.' >{INBOX}/owl.txt", user="anna")
    for name, wanted in (("heron.txt", "chgrp engramd"), ("owl.txt", "chmod g+r")):
        sentence = reason(engramd, name)
        assert wanted in sentence, sentence
        machine.sh(f"{command_in(sentence)} && mv {HOME}/inbox/failed/me/{name} {INBOX}/", user="anna")
    engramd.until(lambda: len(engramd.events("batch_read")) == 2 or engramd.promoted(), 60)


def test_a_folder_that_cannot_be_taken_away_stays_with_its_reason(engramd: Engramd) -> None:
    machine = engramd.machine
    for umask, name in (("022", "open"), ("077", "closed")):
        machine.sh(f"umask {umask}; mkdir ~/{name}; echo 'The {name} day.' >~/{name}/a.txt; cp -r ~/{name} {INBOX}/",
                   user="anna")  # fmt: skip
    for name in ("open", "closed"):
        sentence = reason(engramd, name)
        assert "chmod -R g+rwX" in sentence and f"{INBOX}/{name}" in sentence, sentence
        machine.sh(command_in(sentence), user="anna")
        gone = (engramd.home.inbox / name, engramd.home.failed / "me" / f"{name}.reason.json")
        engramd.until(lambda gone=gone: not any(path.exists() for path in gone), 60)  # type: ignore[misc]
