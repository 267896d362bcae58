"""Seeds that depend on names alone, so that no draw elsewhere can shift them."""

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the place that `names` says, under the chain's seed."""
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
