"""A GGUF file opened as a model of transformers, from its metadata and tensors alone.

It reads what llama.cpp reads, with llama.cpp's own defaults (src/llama-model.cpp and src/models/*.cpp) where a key
is missing, and knows nothing of how our converter writes: a wrong or forgotten value becomes a model that answers
otherwise, which is what the comparison in `parity` is after. Tensors are dequantised when they are used, layer by
layer (`streamed`). Architectures: qwen2, qwen3, llama (Mistral is written as llama), gemma2, gemma3.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from trainer import gguf_vocabulary, streamed
from trainer.contract import BadSpec

_FAMILIES = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "gemma2": "gemma2", "gemma3": "gemma3_text"}
_ACROSS = 1 << 24  # values that are dequantised at a time

_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_IN_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_IN_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


class ParityFailed(BadSpec):
    """An export is not the model that it was made of. The message is one sentence that says what differs."""


class GgufFile:
    """A GGUF file: its metadata by key, its tensors by name. Raises ParityFailed where it is no such file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ParityFailed(f"{path.name} cannot be read as GGUF: {error}") from error
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self.architecture = str(self.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def of(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's own. Without a default it has to be there: llama.cpp does not load without."""
        found = self.get(f"{self.architecture}.{key}", default)
        if found is None:
            raise ParityFailed(f"{self.path.name} lacks {self.architecture}.{key}")
        return found

    def vocabulary(self) -> gguf_vocabulary.Vocabulary:
        """The tokenizer that llama.cpp makes of this file. Raises ParityFailed."""
        prefix = "tokenizer.ggml."
        values = {
            key.removeprefix(prefix): field.contents()
            for key, field in self._reader.fields.items()
            if key.startswith(prefix)
        }
        try:
            return gguf_vocabulary.read(values)
        except gguf_vocabulary.Unreadable as error:
            raise ParityFailed(f"{self.path.name}: {error}") from error

    def tensor(self, name: str, rows: slice = slice(None)) -> Tensor:
        """These rows of a tensor in float32, as they lie in the file."""
        if name not in self.tensors:
            raise ParityFailed(f"{self.path.name} lacks the tensor {name}")
        stored = self.tensors[name]
        data = stored.data[rows]
        if data.ndim < 2:
            return torch.from_numpy(np.array(dequantize(data, stored.tensor_type), dtype=np.float32))
        step = max(1, _ACROSS // int(stored.shape[0]))
        found = np.empty((len(data), int(stored.shape[0])), dtype=np.float32)
        for at in range(0, len(data), step):
            found[at : at + step] = dequantize(data[at : at + step], stored.tensor_type)
        return torch.from_numpy(found)


class Reader:
    """The model of a GGUF file, with a LoRA adapter in a GGUF file of its own on it if there is one."""

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        self.file = GgufFile(path)
        self.adapter = None if adapter is None else GgufFile(adapter)
        if self.file.architecture not in _FAMILIES:
            raise ParityFailed(f"{path.name} is of architecture {self.file.architecture!r}, which is not known here")
        self.vocabulary = self.file.vocabulary()
        self.config = self._config()
        self._norm = -1.0 if self.file.architecture.startswith("gemma") else 0.0

    def _config(self) -> Any:
        """What llama.cpp makes of the metadata, in transformers' words."""
        of, file = self.file.of, self.file
        heads, hidden, layers = of("attention.head_count"), of("embedding_length"), of("block_count")
        values: dict[str, Any] = {
            "vocab_size": int(file.tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in file.tensors else 0,
            "hidden_size": hidden,
            "intermediate_size": of("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": of("attention.head_count_kv", heads),
            "head_dim": of("attention.key_length", hidden // heads),
            "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": of("context_length"),
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "rope_parameters": self._rope(),
        }
        if file.architecture.startswith("gemma"):
            values |= self._gemma(hidden, heads, layers, values["head_dim"])
        return AutoConfig.for_model(_FAMILIES[file.architecture], **values)

    def _rope(self) -> dict[str, Any]:
        of = self.file.of
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": of("rope.freq_base", 10_000.0)}
        kind, factor = of("rope.scaling.type", "linear"), of("rope.scaling.factor", 0.0)
        if kind == "linear" and factor:
            rope |= {"rope_type": "linear", "factor": factor}
        elif kind == "yarn":
            old = of("rope.scaling.original_context_length", of("context_length"))
            rope |= {"rope_type": "yarn", "factor": factor or 1.0, "original_max_position_embeddings": old}
            rope |= {"beta_fast": of("rope.scaling.yarn_beta_fast", 32.0)}
            rope |= {"beta_slow": of("rope.scaling.yarn_beta_slow", 1.0)}
        elif kind not in ("linear", "none"):
            raise ParityFailed(f"{self.file.path.name} scales its rope by {kind!r}, which is not known here")
        return rope

    def _gemma(self, hidden: int, heads: int, layers: int, width: int) -> dict[str, Any]:
        """What llama.cpp's gemma2 and gemma3 add, most of it fixed in their code."""
        of, second = self.file.of, self.file.architecture == "gemma2"
        window = of("attention.sliding_window", 4096 if second else 0)
        period = of("attention.sliding_window_pattern", 2 if second else 6)
        slides = list(period) if isinstance(period, list) else [n % period < period - 1 for n in range(layers)]
        wide = layers == (46 if second else 62)  # the 27B models
        rope = self._rope()
        local = {"rope_type": "default", "rope_theta": of("rope.freq_base_swa", 10_000.0)}
        return {
            "query_pre_attn_scalar": hidden // heads if wide else width,
            "attn_logit_softcapping": of("attn_logit_softcapping", 50.0) if second else None,
            "final_logit_softcapping": of("final_logit_softcapping", 30.0 if second else 0.0) or None,
            "sliding_window": window or None,
            "layer_types": ["sliding_attention" if window and one else "full_attention" for one in slides],
            "rope_parameters": rope if second else {"full_attention": rope, "sliding_attention": local},
            "hidden_activation": "gelu_pytorch_tanh",
        }

    def model(self, pulse: Callable[[], None]) -> PreTrainedModel:
        """The model in float32, its weights dequantised as it runs. Raises ParityFailed where tensors do not fit."""
        model = streamed.without_weights(self.config)
        factors = "rope_freqs.weight"
        if factors in self.file.tensors:
            rotary: Any = model.get_submodule("model.rotary_emb")
            divisors = self.file.tensor(factors)
            if divisors.shape != rotary.inv_freq.shape:
                raise ParityFailed(f"{factors} in {self.file.path.name} does not fit heads of {self.config.head_dim}")
            rotary.inv_freq = rotary.inv_freq / divisors
        used = {factors} | {self.name(name) for name, _ in model.named_parameters()}
        if left := sorted(set(self.file.tensors) - used):
            raise ParityFailed(f"{self.file.path.name} holds {left[0]}, which {self.file.architecture} does not know")
        streamed.stream(model, self.fetch, pulse)
        return model

    def name(self, name: str) -> str:
        """How GGUF calls a tensor of transformers."""
        module, _, kind = name.rpartition(".")
        if module in _OUTSIDE:
            own = "token_embd" if module == "lm_head" and "output.weight" not in self.file.tensors else _OUTSIDE[module]
            return f"{own}.{kind}"
        _, _, number, inner = module.split(".", 3)
        gemma = self.file.architecture.startswith("gemma")
        return f"blk.{number}.{(_IN_GEMMA if gemma else {}).get(inner) or _IN_LAYER[inner]}.{kind}"

    def fetch(self, name: str) -> Tensor:
        """A tensor by its name in transformers, in float32, what the adapter adds to it added."""
        change = self.delta(name)
        return self.plain(name) if change is None else self.plain(name) + change

    def plain(self, name: str, every: int = 1) -> Tensor:
        """The same without the adapter, or each `every`th row of it, in transformers' order.

        A bias that is not in the file is none, as llama.cpp has it.
        """
        stored = self.name(name)
        if stored.endswith(".bias") and stored not in self.file.tensors:
            return torch.zeros(self._bias_width(stored))[::every]
        rows = self._order(stored)
        if rows is not None:
            return self.file.tensor(stored)[rows][::every]
        tensor = self.file.tensor(stored, slice(None, None, every))
        return tensor + self._norm if stored.endswith("_norm.weight") else tensor

    def delta(self, name: str, every: int = 1) -> Tensor | None:
        """What the adapter adds to a tensor (by its name in transformers), or to each `every`th row of it."""
        stored = self.name(name)
        rows = self._order(stored)
        change = self._change(stored)
        if change is None:
            return None
        b, a = change
        return (b if rows is None else b[rows])[::every] @ a

    def _change(self, stored: str) -> tuple[Tensor, Tensor] | None:
        """B with the scale in it, and A, as the adapter has them (llama-adapter.h: alpha / rank)."""
        if self.adapter is None or f"{stored}.lora_a" not in self.adapter.tensors:
            return None
        a, b = self.adapter.tensor(f"{stored}.lora_a"), self.adapter.tensor(f"{stored}.lora_b")
        alpha = float(self.adapter.get("adapter.lora.alpha", 0.0))
        return b * (alpha / b.shape[1] if alpha else 1.0), a

    def _order(self, stored: str) -> Tensor | None:
        """In which order the rows have to be taken: llama's queries and keys lie in pairs for its rotation."""
        turned = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")
        if self.file.architecture != "llama" or not stored.endswith(turned):
            return None
        count = int(self.file.tensors[stored].shape[-1]) if stored in self.file.tensors else 0
        width = int(self.config.head_dim)
        if width % 2 or count % width:
            raise ParityFailed(f"{stored} has {count} rows, which are no heads of {width}")
        return torch.arange(count).view(-1, width // 2, 2).transpose(1, 2).reshape(-1)

    def _bias_width(self, stored: str) -> int:
        return int(self.file.tensors[stored.removesuffix("bias") + "weight"].shape[-1])


def logits(model: nn.Module, ids: list[int], named: str) -> Tensor:
    """As `streamed.logits`; a tensor that does not fit the metadata is a ParityFailed about `named`."""
    try:
        return streamed.logits(model, ids)
    except (ValueError, RuntimeError) as error:
        raise ParityFailed(f"{named} does not run as its metadata describe it: {str(error).splitlines()[0]}") from error
