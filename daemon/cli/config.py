"""`engramd config`: the settings in force, and the file that lists all of them."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from daemon.cli import command
from daemon.cli.context import home_of, overrides_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from daemon.cli import Subparsers

_HEAD = """\
# engramd.toml: when and where. What a training run does stands in training.json beside this file.
#
# Every setting is here with its default, commented out; remove the # to change one. A value on the command
# line (--set inbox.quiet_seconds=1) wins over the environment (ENGRAMD_INBOX__QUIET_SECONDS=1), which wins
# over this file, which wins over training.json. A misspelt key is an error. `engramd config` shows what is
# in force and where it came from.
"""
_SECTION_NOTES = {
    "training": "Any key of training.json, which this section wins over. A job that waits or runs keeps its own.",
    "cycle": "What a cycle selects; these keys may stand in training.json too.",
    "curation": "What becomes of a memory before it is trained.",
    "training.when": "When a job may run. Outside of it the running job saves, and goes on later where it stopped.",
    "training.mix": "What goes into a night's job beside what is new.",
    "evaluation": "What each new version is measured by, beside the version in service and the base.",
    "gate": "By how much a new version may be worse than the one in service before it is refused.",
    "versioning": "What a new version means for the next one.",
    "retention.snapshots": "What `engramd prune` keeps of each kind: all that any of these rules keeps.",
}
_NAMED = {  # sections of which a person makes as many as there are names: what they are, and an example
    "sources": (
        "A section like this is for one source of chats with an AI: chatgpt, claude or gemini. docs/formats.md says "
        "what each choice teaches.",
        "chatgpt",
    ),
    "schedule.cycles": (
        "A section like this is a cycle of its own: a larger training run over many memories, with its own times and "
        "selection. This one is there by itself (when = \"off\" ends it), and there may be more.",
        "monthly",
    ),
    "profiles": (
        "A section like this declares a profile, one person's separate world; `me` is always there.",
        "anna",
    ),
}
# The recipe's class belongs to the trainer; what its keys are for is said to the owner here.
_RECIPE_NOTES = {
    "base_model": "A hub id that is on disk, a folder, or builtin:tiny.",
    "max_seq_length": "Tokens; a longer sample is trained in parts.",
    "lora_rank": "Capacity of the adapter; more takes more memory.",
    "lora_alpha": "Scale of the adapter, usually twice the rank.",
    "lora_dropout": "Share of the adapter's inputs left out at random.",
    "num_train_epochs": "How often a job goes over its samples.",
    "learning_rate": "For method lora.",
    "full_learning_rate": "For method full; kept between 1e-5 and 5e-5.",
    "per_device_train_batch_size": "Samples; times gradient_accumulation_steps it gives those of one step.",
    "gradient_accumulation_steps": "See per_device_train_batch_size.",
    "optimizer": "The 8-bit ones need a GPU; without one adamw_torch is used.",
    "dtype": "In which the model is computed.",
    "load_in_4bit": "Hold the base in 4 bits (method lora only).",
    "use_gradient_checkpointing": "Less memory, about a third slower.",
    "save_steps": "A checkpoint each so many steps, and at the end of each job.",
    "save_total_limit": "So many checkpoints of a chain are kept.",
    "method": "lora trains an adapter; full trains every weight.",
    "lr_scheduler_type": "Only the constant ones go on evenly from job to job.",
    "warmup_steps": "Steps of a new chain over which the rate rises.",
    "weight_decay": "Pull of each weight towards zero.",
    "adam_beta1": "Memory of the mean of the gradients.",
    "adam_beta2": "Memory of their squares.",
    "adam_epsilon": "Keeps the division safe.",
    "max_grad_norm": "Longer gradients are cut to this length.",
    "packing": "Put several short samples in one row; they do not see each other.",
    "micro_batch_tokens": "Tokens of one pass, padding included; less takes less memory.",
    "ema_decay": "For method lora: a running mean of the weights, used where it scores better; 0: none.",
    "full_ema_decay": "The same for method full; it takes four bytes a weight more.",
    "carry_optimizer": "false starts the optimizer's moments anew in each job.",
}


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "config")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of {key, value, from}, and the notices")
    form.add_argument(
        "--template", action="store_true", help="print an engramd.toml with every key and its default"
    )
    parser.set_defaults(run=_config)


def _config(args: argparse.Namespace) -> int:
    if args.template:
        print(template(), end="")
        return Exit.OK
    from daemon.settings import SettingsError, origins

    notices = settings_of(args).notices
    home = home_of(args)
    try:
        found = origins(home, overrides_of(args))
    except SettingsError as error:
        raise UserError(str(error), Exit.CONFIG) from None
    if args.json:
        settings = [{"key": key, "value": value, "from": where} for key, value, where in found]
        print_json({"home": str(home.root), "settings": settings, "notices": notices})
        return Exit.OK
    rows = [(key, json.dumps(value, ensure_ascii=False), where) for key, value, where in found]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    print(f"home: {home.root}\n")
    for key, value, where in rows:
        print(f"{key:<{widths[0]}}  {value:<{min(widths[1], 40)}}  {where}")
    for notice in notices:
        print(f"\nnote: {notice}")
    return Exit.OK


def template() -> str:
    """The text of `etc/engramd.toml`: made from the settings' classes, so that it lists each key."""
    from daemon.settings import Settings

    schema = Settings.model_json_schema()
    defaults = Settings()
    parts = [_HEAD]
    for section in Settings.model_fields:
        if section not in _NAMED:
            parts.append(_section(section, getattr(defaults, section), schema))
    return "\n".join([*parts, *(_named(section) for section in _NAMED)])


def _section(section: str, values: "BaseModel", schema: dict[str, Any]) -> str:
    from pydantic import BaseModel

    from daemon.settings_layers import allowed

    lines, below = [f"[{section}]"], []
    if section in _SECTION_NOTES:
        lines += _comment(_SECTION_NOTES[section])
    for key, field in type(values).model_fields.items():
        value = getattr(values, key)
        if f"{section}.{key}" in _NAMED:
            continue
        if isinstance(value, BaseModel):
            below.append(_section(f"{section}.{key}", value, schema))
            continue
        about = field.description or _RECIPE_NOTES[key]
        limits = allowed(schema, [*section.split("."), key])
        lines += _comment(f"{about} ({limits})" if limits else about)
        lines.append(f"#{key} = {_toml(value)}")
    own = "\n".join(lines) + "\n"
    return "\n".join([own, *below] if len(lines) > 1 else below)


def _named(section: str) -> str:
    from pydantic import BaseModel

    from daemon.settings_sections import CycleSchedule, CycleSettings, ProfileSettings, SourceSettings

    note, example = _NAMED[section]
    classes: dict[str, type[BaseModel]] = {
        "profiles": ProfileSettings, "sources": SourceSettings, "schedule.cycles": CycleSchedule
    }  # fmt: skip
    fields, cycle = classes[section].model_fields, CycleSettings()
    lines = [*_comment(note), f"#[{section}.{example}]"]
    for key, field in fields.items():
        lines += _comment(field.description or "")
        default = field.get_default(call_default_factory=True)
        lines.append(f"#{key} = {_toml(getattr(cycle, key, True) if default is None else default)}")
    return "\n".join(lines) + "\n"


def _comment(text: str, width: int = 108) -> list[str]:
    lines, line = [], "#"
    for word in text.split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:.1e}".replace("e-0", "e-")
    return json.dumps(
        value, ensure_ascii=False
    )  # texts, numbers, true and false, [], {} are the same in TOML
