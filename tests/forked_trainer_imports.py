"""What the server of tests/forked_trainer.py imports once for all its children."""

from trainer.surroundings import settle

settle(quantised=False)

import torch  # noqa: E402
import transformers.models.qwen3.modeling_qwen3  # noqa: E402, F401

import trainer.chat  # noqa: E402
import trainer.finetune  # noqa: E402, F401

torch.set_num_threads(1)
