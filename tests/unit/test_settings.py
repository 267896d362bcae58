"""Order of the layers, one sentence for a wrong value, what is put right, and the shipped files."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from daemon.__main__ import main
from daemon.cli.config import template
from daemon.home import Home
from daemon.settings import Settings, SettingsError, load, origins
from trainer.contract import TrainingRecipe

CHECKOUT = Path(__file__).resolve().parents[2]


def write(home: Home, toml: str = "", training: dict[str, Any] | str | None = None) -> Home:
    home.etc.mkdir(parents=True, exist_ok=True)
    (home.etc / "engramd.toml").write_text(toml)
    if training is not None:
        text = training if isinstance(training, str) else json.dumps(training)
        (home.etc / "training.json").write_text(text)
    return home


def problem(home: Home, overrides: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(home, overrides, environ or {})
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_home_without_etc_has_the_defaults(home: Home) -> None:
    settings = load(home, environ={})
    assert settings == Settings()
    assert settings.recipe("me") == TrainingRecipe()
    assert settings.notices == []
    assert {where for _, _, where in origins(home, environ={})} == {"default"}


def test_each_layer_wins_over_the_next(home: Home) -> None:
    write(home, "[training]\nlora_rank = 3\nlora_alpha = 3\nnum_train_epochs = 3", {
        "lora_rank": 4, "lora_alpha": 4, "num_train_epochs": 4, "save_steps": 4,
    })  # fmt: skip
    environ = {"ENGRAMD_TRAINING__LORA_RANK": "2", "ENGRAMD_TRAINING__LORA_ALPHA": "2"}
    overrides = {"training.lora_rank": 1}
    recipe = load(home, overrides, environ).training
    assert (recipe.lora_rank, recipe.lora_alpha, recipe.num_train_epochs, recipe.save_steps) == (1, 2, 3, 4)
    where = {key: place for key, _, place in origins(home, overrides, environ)}
    assert where["training.lora_rank"] == "command line"
    assert where["training.lora_alpha"] == "ENGRAMD_TRAINING__LORA_ALPHA"
    assert where["training.num_train_epochs"] == "etc/engramd.toml"
    assert where["training.save_steps"] == "etc/training.json"
    assert where["training.max_seq_length"] == "default"


def test_the_origins_short_names(home: Home) -> None:
    environ = {
        "ENGRAMD_BASE_MODEL": "builtin:tiny",
        "ENGRAMD_DAYS_RECENT": "7",
        "ENGRAMD_OLD_SAMPLES": "8",
        "ENGRAMD_MAX_SAMPLES": "9",
        "ENGRAMD_DATASET_BUILDER": "classic",
    }
    settings = load(home, environ=environ)
    assert settings.training.base_model == "builtin:tiny"
    cycle = settings.cycle
    assert (cycle.days_recent, cycle.old_samples, cycle.max_samples) == (7, 8, 9)
    assert cycle.dataset_builder == "classic"
    assert ("cycle.days_recent", 7, "ENGRAMD_DAYS_RECENT") in origins(home, environ=environ)
    longer = environ | {"ENGRAMD_CYCLE__DAYS_RECENT": "6"}
    assert load(home, environ=longer).cycle.days_recent == 6


def test_a_section_and_a_list_may_be_json_in_the_environment(home: Home) -> None:
    environ = {"ENGRAMD_INBOX": '{"quiet_seconds": 0.2}', "ENGRAMD_PROFILES__ANNA__ALIASES": '["Änne"]'}
    settings = load(home, environ=environ)
    assert settings.inbox.quiet_seconds == 0.2
    assert settings.profiles["anna"].aliases == ["Änne"]
    assert ("inbox.quiet_seconds", 0.2, "ENGRAMD_INBOX") in origins(home, environ=environ)
    assert problem(home, environ={"ENGRAMD_INBOX": "{"}).startswith("ENGRAMD_INBOX cannot be read as JSON")


def test_other_variables_with_our_prefix_are_left_alone(home: Home) -> None:
    assert load(home, environ={"ENGRAMD_HOME": "/x", "ENGRAMD_FAULTS_LONG": "1"}) == Settings()


def test_training_json_holds_recipe_and_cycle_and_names_what_is_unknown(home: Home) -> None:
    write(home, training={"lora_rank": 16, "max_samples": 5, "comment": "x", "notes": ["y"], "lora_rnk": 1})
    settings = load(home, environ={})
    assert settings.training.lora_rank == 16
    assert settings.cycle.max_samples == 5
    assert settings.notices == ["etc/training.json: lora_rnk is not known and has no effect"]


@pytest.mark.parametrize(
    ("toml", "training", "overrides", "environ", "expected"),
    [
        ("[inbox]\nquiet_seconds = -1", None, {}, {}, "etc/engramd.toml: inbox.quiet_seconds = -1 is not allowed;"
         " it must be a number from 0 to 3600"),
        ("[inbox]\nquiet_second = 1", None, {}, {}, "etc/engramd.toml: inbox.quiet_second is no setting;"
         " the nearest is inbox.quiet_seconds"),
        ("[inbx]\nx = 1", None, {}, {}, "etc/engramd.toml: inbx is no setting; the nearest is inbox"),
        ("inbox = 3", None, {}, {}, "etc/engramd.toml: inbox = 3 is not allowed; it must be a section with keys"
         " of its own"),
        ("[jobs]\nretries = true", None, {}, {}, "etc/engramd.toml: jobs.retries = true is not allowed;"
         " it must be a whole number from 0 to 100"),
        ("[inbox]\nscan_seconds = nan", None, {}, {}, "etc/engramd.toml: inbox.scan_seconds = NaN is not allowed;"
         " it must be a number from 0.05 to 3600"),
        ("", {"lora_rank": 0}, {}, {}, "etc/training.json: training.lora_rank = 0 is not allowed;"
         " it must be a whole number from 1 to 1024"),
        ("", {"optimizer": "sgd"}, {}, {}, 'etc/training.json: training.optimizer = "sgd" is not allowed;'
         " it must be one of adamw_torch, adamw_8bit, paged_adamw_8bit, adafactor"),
        ("", {"base_model": ""}, {}, {}, 'etc/training.json: training.base_model = "" is not allowed;'
         " it must be a text that is not empty"),
        ("", None, {"log.level": "loud"}, {}, 'command line: log.level = "loud" is not allowed;'
         " it must be one of debug, info, warning, error"),
        ("", None, {}, {"ENGRAMD_MAX_SAMPLES": "many"}, 'ENGRAMD_MAX_SAMPLES: cycle.max_samples = "many" is not'
         " allowed; it must be a whole number from 1 to 100000000"),
        ("", None, {}, {"ENGRAMD_INBOX__QUIET": "1"}, "ENGRAMD_INBOX__QUIET: inbox.quiet is no setting;"
         " the nearest is inbox.quiet_seconds"),
        ("[schedule]\nsnapshot = 'sometimes'", None, {}, {}, 'etc/engramd.toml: schedule.snapshot = "sometimes" is'
         " not allowed: it is no time that engramd understands; use daily 03:00, sun 04:30, mon-fri 02:00, 1st 03:30,"
         " last 03:00, every 2 weeks on fri from 2026-01-02, monthly, quarterly, five fields of cron, or off"),
        ("[schedule.cycles.long]\nwhen = '31st 24:00'", None, {}, {}, 'etc/engramd.toml: schedule.cycles.long.when ='
         " \"31st 24:00\" is not allowed: '24:00' is no time of day; one looks like 03:30, from 00:00 to 23:59"),
        ("[schedule.cycles.long]\nmax_samples = 0", None, {}, {}, "etc/engramd.toml: schedule.cycles.long.max_samples ="
         " 0 is not allowed; it must be a whole number from 1 to 100000000"),
        ("[schedule]\ntimezone = 'Mars'", None, {}, {}, 'etc/engramd.toml: schedule.timezone = "Mars" is not allowed:'
         " it is no time zone; one looks like Europe/Berlin"),
        ("[profiles.anna.training]\nlora_rank = 0", None, {}, {}, "etc/engramd.toml:"
         " profiles.anna.training.lora_rank = 0 is not allowed; it must be a whole number from 1 to 1024"),
        ("[profiles.anna.training]\nlora_rnk = 1", None, {}, {}, "etc/engramd.toml:"
         " profiles.anna.training.lora_rnk is no setting; the nearest is profiles.anna.training.lora_rank"),
        ("[profiles.anna.training]\npacking = 3", None, {}, {}, "etc/engramd.toml:"
         " profiles.anna.training.packing = 3 is not allowed; it must be true or false"),
        ("[profiles.Anna]", None, {}, {}, "etc/engramd.toml: profiles.Anna is no name for a profile;"
         " it must be a-z, 0-9, _ and -, at most 32 of them, and neither failed nor claimed"),
        ("[inbox]\nquiet_seconds = -1\nscan_seconds = 'x'", None, {}, {}, "etc/engramd.toml: inbox.quiet_seconds"
         " = -1 is not allowed; it must be a number from 0 to 3600 (and 1 more)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_sentence(
    home: Home,
    toml: str,
    training: dict[str, Any] | None,
    overrides: dict[str, Any],
    environ: dict[str, str],
    expected: str,
) -> None:
    assert problem(write(home, toml, training), overrides, environ) == expected


def test_a_broken_file_is_named_with_its_line(home: Home) -> None:
    assert problem(write(home, "[inbox]\nquiet_seconds = \n")).startswith("etc/engramd.toml, line 2, cannot be read")
    write(home, "", '{"lora_rank": 8,\n"lora_alpha" 16}')
    assert problem(home).startswith("etc/training.json, line 2, cannot be read as JSON")
    assert problem(write(home, "", "[]")) == "etc/training.json must hold one JSON object, with settings by name"
    (home.etc / "training.json").write_bytes(b'{"base_model": "\xff"}')
    assert problem(home) == "etc/training.json is not UTF-8 text"
    (home.etc / "engramd.toml").unlink()
    (home.etc / "engramd.toml").mkdir()
    assert problem(home).startswith("etc/engramd.toml cannot be read: ")


@pytest.mark.parametrize(
    ("given", "used", "said"),
    [
        ("fast", 3e-5, "is not a number; 3e-05 is used"),
        (None, 3e-5, "is not a number; 3e-05 is used"),
        (1, 5e-5, "lies outside 1e-05 to 5e-05; 5e-05 is used"),
        (1e-9, 1e-5, "lies outside 1e-05 to 5e-05; 1e-05 is used"),
        (2e-5, 2e-5, None),
        ("2e-5", 2e-5, None),
    ],
)
def test_the_full_rate_is_put_right_and_said(home: Home, given: Any, used: float, said: str | None) -> None:
    settings = load(write(home, training={"full_learning_rate": given}), environ={})
    assert settings.training.full_learning_rate == used
    shown = f"etc/training.json: full_learning_rate = {json.dumps(given)} {said}"
    assert settings.notices == ([shown] if said else [])


def test_four_bits_are_ignored_for_method_full(home: Home) -> None:
    write(home, training={"load_in_4bit": True, "method": "full"})
    settings = load(home, environ={})
    assert not settings.training.quantised
    assert settings.notices == ["load_in_4bit is ignored: method full trains every weight in bfloat16"]


def test_a_profile_overrides_part_of_the_recipe(home: Home) -> None:
    write(home, "[profiles.anna]\nseed = 7\naliases = ['Anna']\n[profiles.anna.training]\nlora_rank = 32")
    settings = load(home, {"training.lora_alpha": 64}, {})
    assert settings.recipe("anna") == TrainingRecipe(lora_rank=32, lora_alpha=64)
    assert settings.recipe("me") == TrainingRecipe(lora_alpha=64)
    assert (settings.seed("anna"), settings.seed("me")) == (7, 0)
    listed = {key: (value, where) for key, value, where in origins(home, environ={})}
    assert listed["profiles.anna.training.lora_rank"] == (32, "etc/engramd.toml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().inbox.quiet_seconds = 1.0  # type: ignore[misc]


# -- the shipped files ------------------------------------------------------------------------------


def test_engramd_toml_lists_every_key_with_its_default() -> None:
    text = (CHECKOUT / "etc" / "engramd.toml").read_text()
    assert text == template(), "write it anew: engramd config --template > etc/engramd.toml"
    plain = {name: {} for name in Settings.model_fields if name not in ("profiles", "sources")}
    nested = {
        "training": {"when": {}, "mix": {}},
        "retention": {"snapshots": {}, "versions": {}, "jobs": {}},
        "compute": {"ssh": {}, "runpod": {}},
    }
    assert tomllib.loads(text) == plain | nested


def test_engramd_toml_with_every_line_taken_in_gives_the_defaults(home: Home) -> None:
    text = re.sub(r"^#(?=[a-z_]+ = |\[)", "", template(), flags=re.MULTILINE)
    settings = load(write(home, text), environ={})
    assert settings.profiles.keys() == {"anna"} and settings.sources.keys() == {"chatgpt"}
    assert settings.schedule.cycles.keys() == {"monthly"}  # with figures where the default is that of [cycle]
    schedule = settings.schedule.model_copy(update={"cycles": Settings().schedule.cycles})
    settings = settings.model_copy(update={"schedule": schedule})
    for section in Settings.model_fields:
        if section not in ("profiles", "sources"):
            assert getattr(settings, section) == getattr(Settings(), section), section


def test_every_key_of_our_sections_says_what_it_is_for() -> None:
    schema = Settings.model_json_schema()
    for name, section in schema["$defs"].items():
        keys = section["properties"].items()
        assert all("description" in key for field, key in keys if field not in TrainingRecipe.model_fields), name


def test_training_json_is_the_origins() -> None:
    settings = load(Home(CHECKOUT), environ={})
    shipped = json.loads((CHECKOUT / "etc" / "training.json").read_text())
    assert settings.notices == []
    assert shipped["base_model"] == "unsloth/Qwen3-14B"
    origin = "base_model max_seq_length lora_rank lora_alpha lora_dropout num_train_epochs learning_rate"
    origin += " per_device_train_batch_size gradient_accumulation_steps optimizer dtype load_in_4bit"
    origin += " use_gradient_checkpointing save_steps save_total_limit"
    assert set(origin.split()) <= shipped.keys()
    assert settings.recipe("me") == TrainingRecipe(base_model="unsloth/Qwen3-14B")


# -- the command ------------------------------------------------------------------------------------


def test_config_prints_values_with_where_they_came_from(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    write(home, "[inbox]\nquiet_seconds = 0.5")
    call = ["--home", str(home.root), "--set", "jobs.nice=3", "config", "--set=jobs.retries=1", "--json"]
    assert main(call) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"home", "settings", "notices"}
    rows = {row["key"]: (row["value"], row["from"]) for row in found["settings"]}
    assert rows["inbox.quiet_seconds"] == (0.5, "etc/engramd.toml")
    assert rows["jobs.nice"] == (3, "command line")
    assert rows["jobs.retries"] == (1, "command line")
    assert main(["config", "--home", str(home.root)]) == 0
    assert re.search(r"inbox\.quiet_seconds +0\.5 +etc/engramd\.toml\n", capsys.readouterr().out)


def test_wrong_settings_end_a_command_with_78(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    write(home, "[inbox]\nquiet_seconds = 'soon'")
    assert main(["config", "--home", str(home.root)]) == 78
    said = capsys.readouterr().err
    assert said.startswith('engramd: etc/engramd.toml: inbox.quiet_seconds = "soon" is not allowed')
    assert said.count("\n") == 1


@pytest.mark.parametrize(("told", "url"), [
    ("", "http://127.0.0.1:11434"), ("0.0.0.0", "http://127.0.0.1:11434"), (":5000", "http://127.0.0.1:5000"),
    ("::1", "http://[::1]:11434"), ("[::]:5000", "http://[::1]:5000"), ("https://box", "https://box:443"),
    ("http://box/ollama/", "http://box:80/ollama"), ("box:port", "http://box:11434"), ("box:70000", "http://box:11434"),
])  # fmt: skip
def test_where_ollama_is_looked_for(told: str, url: str) -> None:
    assert Settings().serve.where({"OLLAMA_HOST": told}) == url
