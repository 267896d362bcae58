"""What the server of tests/forked_trainer.py imports once for all its children."""

from trainer.surroundings import settle

settle(models=True, quantised=False)

import torch  # noqa: E402
import transformers.models.qwen3.modeling_qwen3  # noqa: E402, F401

import trainer.chat  # noqa: E402
import trainer.finetune  # noqa: E402, F401

torch.set_num_threads(1)

# Transformers compiles hundreds of patterns at its first loading.
from trainer import base_files, base_model  # noqa: E402

base_model.load_model(base_files.resolve("builtin:tiny"), torch.device("cpu"), torch.float32)
