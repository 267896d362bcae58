"""Base models of a given shape with random weights, for measuring: made on the device, or written to a folder.

The leading underscore keeps `make bench` from running this file.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Qwen3. `hidden`, `inner` and `head_width` are widths of the residual stream, the MLP and one head."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    vocabulary: int = 151_936
    head_width: int = 128

    def config(self) -> Any:
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            head_dim=self.head_width, tie_word_embeddings=self.tied, max_position_embeddings=40_960,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        )  # fmt: skip

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers, without embeddings and head."""
        attention = self.hidden * self.head_width * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)


def base_folder(folder: Path, shape: Shape) -> Path:
    """A folder that the trainer takes for a base on disk: config, tokenizer, and a name for the weights."""
    from trainer.base_files import resolve

    shape.config().save_pretrained(folder)
    builtin = resolve("builtin:tiny")
    for path in (*builtin.glob("token*"), *builtin.glob("chat_template*")):
        shutil.copy(path, folder)
    (folder / "model.safetensors").write_bytes(bytes(8))
    return folder


def write_base(folder: Path, shape: Shape) -> Path:
    """A real base on disk, in float32."""
    import torch

    base_folder(folder, shape)
    make_model(folder, torch.device("cpu"), torch.float32).save_pretrained(folder)
    return folder


def make_model(folder: Path, device: Any, dtype: Any, *, quantised: bool = False) -> Any:
    """What `base_model.load_model` would give for a `base_folder`, with seeded random weights.

    They are drawn on the device, one layer after the other; quantised, only one layer is ever held whole.
    """
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(1)
    for name, module in list(model.named_modules()):
        above, _, own = name.rpartition(".")
        if quantised and isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            setattr(model.get_submodule(above), own, _nf4(module, device, dtype))
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            weight = torch.empty(parameter.shape, device=device, dtype=dtype)
            weight = weight.normal_(0.0, 0.02) if weight.dim() > 1 else weight.fill_(1.0)
            setattr(module, key, nn.Parameter(weight, requires_grad=False))
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # rotary embeddings
            with torch.device(device):
                setattr(model.get_submodule(above), own, type(module)(config=config))
    model.tie_weights()
    model.is_loaded_in_4bit = quantised  # what PEFT asks
    return model.eval()


def _nf4(module: Any, device: Any, dtype: Any) -> Any:
    import bitsandbytes as bnb
    import torch

    weight = torch.empty(module.weight.shape, device=device, dtype=dtype).normal_(0.0, 0.02)
    made = bnb.nn.Linear4bit(
        module.in_features, module.out_features, bias=False, compute_dtype=dtype,
        compress_statistics=True, quant_type="nf4", device="meta",
    )  # fmt: skip
    made.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
    )
    return made.to(device)  # quantises
