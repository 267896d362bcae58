"""Exports beside the models they were made of: each architecture, each quantisation, and what is broken on purpose.

Tiny random models of each family are written as GGUF and put through the gate that every export passes
(`trainer/parity.py`). Random weights are the hardest case for logits: nothing in them is redundant. The second table
breaks good exports in one way each, and tells which sentence the gate refused them with.

The first figures hold the file, computed in float32, against the model; the last ones hold llama.cpp against the file.

    python benchmarks/export.py [--smoke] [--only FAMILY] [--engine reader|llama.cpp] [--json FILE]

Bars: every good export passes, with token ids identical; every broken one is refused. K-quants need the extra `gguf`;
without it they are left out, and said so.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLAIN, K_QUANTS = ("f16", "bf16", "Q8_0"), ("Q6_K", "Q5_K_M", "Q4_K_M")
BUILTIN = "builtin"


def nothing() -> None:
    pass


def export(model: Path, folder: Path, quantisation: str) -> Path:
    """The GGUF file of this model; K-quants by way of bf16, as an export job does it."""
    from trainer import gguf, quantise

    out = folder / f"{quantisation}.gguf"
    if quantisation in PLAIN:
        gguf.convert(model, out, quantisation=quantisation, pulse=nothing)  # type: ignore[arg-type]
        return out
    between = folder / "between.gguf"
    gguf.convert(model, between, quantisation="bf16", pulse=nothing)
    quantise.quantise(between, out, quantisation)  # type: ignore[arg-type]
    between.unlink()
    return out


def measure(family: str, model: Path, folder: Path, quantisation: str, engine: Any) -> dict[str, Any]:
    """One row: the figures of the gate, or the sentence it refused with."""
    from trainer import parity

    file = export(model, folder, quantisation)
    began = time.monotonic()
    row: dict[str, Any] = {"family": family, "quantisation": quantisation, "passed": True, "said": ""}
    try:
        figures, used = parity.compare(model, file, quantisation, pulse=nothing, engine=engine)
        row |= {**figures, "engine": used}
    except parity.ParityFailed as error:
        row |= {"passed": False, "said": str(error)}
    row["seconds"] = time.monotonic() - began
    return row


def break_all(family: str, model: Path, good: Path, quantisation: str, engine: Any) -> list[dict[str, Any]]:
    """A row for each fault that this file can have."""
    from benchmarks import _broken
    from trainer import parity

    rows = []
    for name, fault in _broken.FAULTS.items():
        broken = good.with_name("broken.gguf")
        if not _broken.rewrite(good, broken, fault):
            continue
        said = ""
        try:
            parity.compare(model, broken, quantisation, pulse=nothing, engine=engine)
        except parity.ParityFailed as error:
            said = str(error)
        rows.append({"family": family, "fault": name, "caught": bool(said), "said": said})
        broken.unlink()
    return rows


HEAD = (
    f"{'':16}{'':8}{'ids':>5}{'logits':>10}{'limit':>7}{'KL':>10}{'limit':>9}{'tensors':>9}{'template':>10}{'s':>6}"
    "  llama.cpp beside the file: logits, KL (limits)"
)


def line(row: dict[str, Any]) -> str:
    start = f"{row['family']:16}{row['quantisation']:8}"
    if not row["passed"]:
        return f"{start} REFUSED: {row['said']}"
    beside = "not asked"
    if row["engine"] == "llama.cpp":
        limits = f"({row['engine_logits_limit']:g}, {row['engine_kl_limit']:g})"
        beside = f"{row['engine_logits']:.2g}, {row['engine_kl']:.2g} {limits}"
    return (
        f"{start}{row['token_ids']:5.0%}{row['logits']:10.2g}{row['logits_limit']:7g}{row['kl']:10.2g}"
        f"{row['kl_limit']:9g}{row['weights']:9.0%}{'same':>10}{row['seconds']:6.1f}  " + beside
    )


def main() -> int:
    from transformers.utils.logging import disable_progress_bar

    from tests import tiny_models
    from trainer import base_files, quantise

    families = [BUILTIN, *tiny_models.FAMILIES]
    parser = argparse.ArgumentParser(description="Benchmark of exports: parity, and what breaks it.")
    parser.add_argument("--smoke", action="store_true", help="two families, two quantisations, no bars")
    parser.add_argument("--only", choices=families, action="append", help="this family; may be repeated")
    parser.add_argument("--engine", choices=("reader", "llama.cpp"), default=None, help="default: the best there is")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    chosen = options.only or (["builtin", "llama3"] if options.smoke else families)
    kinds = ("f16", "Q8_0") if options.smoke else PLAIN + (K_QUANTS if quantise.available() else ())
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    broken: list[dict[str, Any]] = []
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="engramd-export-") as folder:
        for family in chosen:
            place = Path(folder, family)
            place.mkdir()
            own = base_files.resolve("builtin:tiny") if family == BUILTIN else tiny_models.make(family, place / "model")
            for kind in kinds:
                rows.append(measure(family, own, place, kind, options.engine))
                print(line(rows[-1]), flush=True)
            broken += break_all(family, own, place / "Q8_0.gguf", "Q8_0", options.engine)
    if not quantise.available():
        print(f"({', '.join(K_QUANTS)} left out: llama-cpp-python is missing, the extra gguf)")
    print("\nbroken on purpose (Q8_0)")
    for row in broken:
        print(f"{row['family']:16}{row['fault']:24}{row['said'] or 'NOT CAUGHT'}")
    print(f"({time.monotonic() - began:.0f} s)")
    if options.json:
        options.json.write_text(json.dumps({"exports": rows, "broken": broken}, indent=1))
    if options.smoke:
        return 0
    bars = {
        f"{sum(row['passed'] for row in rows)} of {len(rows)} good exports pass, ids identical": all(
            row["passed"] and row["token_ids"] == 1.0 for row in rows
        ),
        f"{sum(row['caught'] for row in broken)} of {len(broken)} broken exports are refused": all(
            row["caught"] for row in broken
        ),
    }
    for name, good in bars.items():
        print(f"{'held' if good else 'MISSED'}: {name}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
