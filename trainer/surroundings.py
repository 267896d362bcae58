"""What is settled before the heavy libraries are imported: no network, no chatter, no needless import."""

import os
import sys
import warnings

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS gives equal bits for equal products
}


def settle(*, models: bool, quantised: bool) -> None:
    """Set the environment and, where `models` will be opened, import PEFT.

    PEFT imports bitsandbytes wherever it is installed, which takes seconds that only nf4 is worth: it is
    kept out unless the base is `quantised`.
    """
    os.environ.update(_ENVIRONMENT)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|peft|transformers|bitsandbytes)")
    if not models or quantised or "bitsandbytes" in sys.modules:
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    try:
        from peft.import_utils import is_bnb_4bit_available, is_bnb_available

        is_bnb_available(), is_bnb_4bit_available()  # asked now, because PEFT remembers the answer
    finally:
        del sys.modules["bitsandbytes"]
