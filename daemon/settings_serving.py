"""`[serve]`: how a version comes to where the person talks to it."""

import os
import re
import shlex
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from daemon.settings_learning import Section
from trainer.contract import Quantisation

DEFAULT_HOST = "http://127.0.0.1:11434"
HOST_VARIABLE = "OLLAMA_HOST"  # Ollama's own
_PORT = 11434
_NAME = re.compile(r"[a-z0-9{][a-z0-9._/{}-]*")
_DURATION = re.compile(r"-?[0-9]+|(-?[0-9]+(\.[0-9]+)?(ms|s|m|h))+")


class ServeSettings(Section):
    """What is made of a version that was promoted, and where it is served."""

    ollama: Literal["auto", "always", "off"] = Field(
        "auto",
        description="Whether each promoted version is made into a model of Ollama. auto: where one answers at `host`; "
        "always: it is exported in any case, and waits for Ollama.",
    )
    host: str = Field(
        "", description=f"Where Ollama answers; empty: as {HOST_VARIABLE} says, else {DEFAULT_HOST}."
    )
    name: str = Field(
        "{profile}",
        description="The model's name in Ollama. A line of its own has `-<line>` behind it, each version `-v<N>`.",
    )
    system: str = Field("", description="A system prompt for the served model; empty: none.")
    keep_alive: str = Field(
        "5m", description="For how long the model stays loaded after it was checked; 0: not at all, -1: always."
    )
    unload: bool = Field(
        True, description="Whether models that Ollama has loaded make room for training on a GPU; loaded again after."
    )
    nightly: Literal["adapter", "merged"] = Field(
        "adapter",
        description="What a night's LoRA is served as: an adapter on the base's own GGUF (megabytes), or merged, as "
        "cycles are (gigabytes).",
    )
    lora_quantisation: Quantisation = Field(
        "Q4_K_M", description="Of merged LoRA versions, and of the base below an adapter."
    )
    full_quantisation: Quantisation = Field("Q6_K", description="Of versions with method full.")
    merge_onto: Literal["original", "dequantised"] = Field(
        "dequantised",
        description="Onto which weights an adapter is added that was trained on a base in 4 bits: the base as it is, "
        "or as it was in training (needs bitsandbytes).",
    )
    keep_tags: int = Field(
        3, ge=0, le=1000,
        description="So many of the newest versions of a line stay in Ollama; the served one and the one before it do "
        "in any case.",
    )  # fmt: skip
    timeout: float = Field(
        600.0, ge=1.0, le=86_400.0, description="Seconds without a word of Ollama after which it is tried again later."
    )
    command: str = Field(
        "",
        description="A command that is run when the head's files are new, for other servers: paths are in its "
        "environment (docs/serving.md). No shell: words and quotes only.",
    )

    @field_validator("name")
    @classmethod
    def _may_be_a_name(cls, value: str) -> str:
        try:
            shown = value.format(profile="me")
        except (KeyError, IndexError, ValueError):
            raise ValueError("the only thing in braces may be {profile}") from None
        if not _NAME.fullmatch(value) or "{" in shown or "}" in shown:
            raise ValueError("it must be a-z, 0-9, ., _, - and /, with {profile} where several people are served")
        return value

    @field_validator("keep_alive")
    @classmethod
    def _may_be_a_duration(cls, value: str) -> str:
        if not _DURATION.fullmatch(value):
            raise ValueError("it is no duration; one looks like 5m, 1h30m, 0 or -1")
        return value

    @field_validator("command")
    @classmethod
    def _may_be_split(cls, value: str) -> str:
        try:
            shlex.split(value)
        except ValueError as error:
            raise ValueError(f"it cannot be read as words: {str(error).lower()}") from None
        return value

    def alias(self, profile: str, line: str) -> str:
        """The name that a person types, of the main line ('') or another one."""
        name = self.name.format(profile=profile)
        return f"{name}-{line}" if line else name

    def where(self, environ: Mapping[str, str] | None = None) -> str:
        """The URL at which Ollama is looked for."""
        told = self.host or (os.environ if environ is None else environ).get(HOST_VARIABLE, "").strip()
        return _url(told) if told else DEFAULT_HOST


def _url(told: str) -> str:
    """As Ollama reads its variable (envconfig.Host): scheme and port may be missing, a path stays, a port that is none
    counts as missing; 0.0.0.0 is an address to listen at, and is reached as 127.0.0.1."""
    scheme, _, rest = told.rpartition("://")
    place, _, path = rest.partition("/")
    if place.count(":") > 1 and not place.startswith("["):  # an IPv6 address without its brackets
        place = f"[{place}]"
    name, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        name, port = place, ""
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        port = str({"https": 443, "http": 80}.get(scheme, _PORT))
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(name, name)
    return f"{scheme or 'http'}://{name}:{port}/{path}".rstrip("/")
