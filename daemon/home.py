"""The home: where everything lies on disk, in one place. No import of weight, no state."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PROFILE = "me"
RESERVED_NAMES = ("failed", "claimed")  # never a profile, never a batch
_PROFILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_CHECKOUT = Path(__file__).resolve().parent.parent


def is_profile_name(name: str) -> bool:
    return _PROFILE_NAME.fullmatch(name) is not None and name not in RESERVED_NAMES


def find_home(flag: str | None, environ: dict[str, str] | None = None) -> Path:
    """`--home` wins over `ENGRAMD_HOME`, which wins over the checkout that this code lies in."""
    chosen = flag or (os.environ if environ is None else environ).get("ENGRAMD_HOME")
    return Path(chosen).expanduser().resolve() if chosen else _CHECKOUT


@dataclass(frozen=True, slots=True)
class ProfilePaths:
    """The folders of one profile; nothing outside them holds anything of it but inbox and snapshots."""

    name: str
    inbox: Path
    failed: Path
    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def claimed(self) -> Path:
        return self.root / "claimed"

    @property
    def archive(self) -> Path:
        return self.root / "archive"

    @property
    def chains(self) -> Path:
        return self.root / "chains"

    @property
    def current_model(self) -> Path:
        return self.root / "current_model"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def registry(self) -> Path:
        return self.root / "model-registry.json"


@dataclass(frozen=True, slots=True)
class Home:
    root: Path

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def failed(self) -> Path:
        return self.inbox / "failed"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def database(self) -> Path:
        return self.state / "home.db"

    @property
    def lock(self) -> Path:
        return self.state / "daemon.lock"

    @property
    def log(self) -> Path:
        return self.state / "logs" / "engramd.jsonl"

    @property
    def profiles(self) -> Path:
        return self.state / "profiles"

    def profile(self, name: str) -> ProfilePaths:
        """Raises ValueError where the name is no profile name."""
        if not is_profile_name(name):
            raise ValueError(f"{name!r} is no profile name: a-z, 0-9, _ and -, at most 32, not {RESERVED_NAMES}")
        inbox = self.inbox if name == DEFAULT_PROFILE else self.inbox / name
        return ProfilePaths(name, inbox, self.failed / name, self.profiles / name)

    def profile_names(self) -> list[str]:
        """The profiles that have been made, the default one first (it always is)."""
        try:
            made = sorted(p.name for p in self.profiles.iterdir() if p.is_dir() and is_profile_name(p.name))
        except FileNotFoundError:
            made = []
        return [DEFAULT_PROFILE, *(name for name in made if name != DEFAULT_PROFILE)]


def python_path() -> str:
    """PYTHONPATH for a child: this very code, then what was set."""
    return os.pathsep.join([str(_CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
