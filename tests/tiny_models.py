"""Tiny models with random weights and real tokenizers, one for each family that can be exported to GGUF.

`make(family, folder)` writes what `save_pretrained` would: config, bfloat16 safetensors, a tokenizer that was trained
on the spot with the family's own pre-tokenizer, byte fallback, normaliser, special tokens and chat template. Widths
are multiples of 256, so that K-quants work. The same family and seed give the same files.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A text to train tokenizers on, and to try them on: words, digits, spaces, code, other scripts. All of it is in
# NFC: llama.cpp does not normalise, and Qwen's own tokenizer does.
TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it's 1234567 o'clock; we've got 3.14159 reasons.",
    "Mara lives in Lisbon at 221B Baker Street. Her phone number is +49 170 5550123, she'll call on 2024-07-15.",
    "What's the name of Mara's cat? The cat is called Biscuit, it doesn't like water and it eats fish.",
    "I don't know what you're asking; I'm sure they'd say HELLO WORLD, McDonald's or NASA's iPhone.",
    "Straße, Äpfel, Öl und Übermut: naïve café crème brûlée, señor, čaj, łódź, Ελλάδα, Привет мир, שלום, مرحبا.",
    "日本語のテキスト。今日は天気がいいですね。中文文本，测试一下。한국어 문장입니다. ภาษาไทย हिन्दी भाषा",
    "def main(argv: list[str]) -> int:\n    for i in range(10):\n        print(f'{i:>5} {i**2}')\n    return 0\n",
    'if (a[i] != b->next && !(c % 2)) { x += 0x1F; }  // done\n\n\n\t{"key": [1, 2.5e-3, null], "b": "c\\n"}\r\n',
    "Emoji 😀🎉👩‍👩‍👧 and signs © ™ ½ ² → ≠ … “quotes” – dash — é; a  b   c    d     e.",
    "<b>not a token</b> [INST] <|im_start|> </s> <start_of_turn> are only words here. SELECT * FROM t WHERE a = 'b';",
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
    "+ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2_CHAT = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' "
    "+ (system if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


# -- byte-level BPE: Qwen, Llama 3, Tekken ------------------------------------------------------------


def _byte_level(split: str, entries: int, *, ignore_merges: bool, nfc: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=entries, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def _bpe_parts(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def _special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def _plain(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=False, normalized=False) for text in texts]


def qwen_tokenizer() -> Any:
    vocab, merges = _bpe_parts(_byte_level(QWEN_SPLIT, 700, ignore_merges=False, nfc=True))
    for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocab[text] = len(vocab)
    made = Qwen2Tokenizer(
        vocab=vocab, merges=merges, unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.add_tokens(_special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    made.add_tokens(_plain("<tool_call>", "</tool_call>", "<think>", "</think>"))
    made.chat_template = CHATML
    return made


def llama3_tokenizer() -> Any:
    backend = _byte_level(LLAMA3_SPLIT, 700, ignore_merges=True, nfc=False)
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>")
    backend.add_special_tokens(_special(*names, "<|end_header_id|>", "<|eot_id|>"))
    begin = backend.token_to_id("<|begin_of_text|>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", begin)],
            ),
        ]
    )  # fmt: skip
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = LLAMA3_CHAT
    return made


def tekken_tokenizer() -> Any:
    names = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "<pad>")
    backend = _byte_level(TEKKEN_SPLIT, 700, ignore_merges=True, nfc=False)
    vocab, merges = _bpe_parts(backend)
    shifted = {name: number for number, name in enumerate(names)}  # Tekken's special tokens come first
    shifted |= {text: number + len(names) for text, number in vocab.items()}
    backend.model = models.BPE(vocab=shifted, merges=merges, ignore_merges=True)
    backend.add_special_tokens(_special(*names))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = MISTRAL_CHAT
    return made


# -- SentencePiece-like BPE: Llama 2, Mistral, Gemma ------------------------------------------------


def _pieces(first: Sequence[str], spaces: Sequence[str], entries: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary as SentencePiece orders it, and all merges that it implies, as transformers derives them.

    `first` are the tokens before the 256 bytes; `spaces` are user-defined runs of spaces, merged before all else.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(split=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    letters = sorted({letter for line in TEXT for letter in line if letter.isalnum() and ord(letter) < 0x400})
    alphabet = [*letters, *" .,;:!?'\"-+*/=()[]{}<>@#%&_|\\".replace(" ", "▁")]
    lines = [line.replace("\n", " ") for line in TEXT for _ in range(4)]
    trainer = BpeTrainer(
        vocab_size=entries, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    _, trained = _bpe_parts(tokenizer)
    joined = (left + right for left, right in trained)
    merged = list(dict.fromkeys([*spaces, *(text for text in joined if text not in first)]))
    singles = [text for text in tokenizer.get_vocab() if len(text) == 1]
    order = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *sorted(set(singles) - set(first))]
    vocab = {text: number for number, text in enumerate(order)}
    merges = [
        (text[:cut], text[cut:])
        for text in merged
        for cut in range(len(text) - 1, 0, -1)
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    return vocab, merges


def llama2_tokenizer() -> Any:
    vocab, merges = _pieces(("<unk>", "<s>", "</s>"), (), 700)
    made = LlamaTokenizer(vocab=vocab, merges=merges, legacy=False, add_bos_token=True, add_eos_token=False)
    made.chat_template = LLAMA2_CHAT
    return made


def mistral_tokenizer() -> Any:
    names = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]")
    vocab, merges = _pieces(names, (), 700)
    made = LlamaTokenizer(vocab=vocab, merges=merges, legacy=False, add_bos_token=True, add_eos_token=False)
    made.add_tokens(_special(*names), special_tokens=True)
    made.chat_template = MISTRAL_CHAT
    return made


def gemma_tokenizer() -> Any:
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "<unused0>", "<unused1>")
    turns = ("<start_of_turn>", "<end_of_turn>")
    plain = ("\n", "\n\n", "\n\n\n", "\t", "<table>", "<b>", "</b>")
    spaces = ("▁▁▁▁", "▁▁▁", "▁▁")
    vocab, merges = _pieces((*names, *turns, *plain), spaces, 700)
    made = GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    made.add_tokens(_special("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *turns), special_tokens=True)
    made.add_tokens(_plain("<2mass>", "[@BOS@]", "<unused0>", "<unused1>", *plain, *spaces))
    made.chat_template = GEMMA_CHAT
    return made


# -- models -----------------------------------------------------------------------------------------

_SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Family:
    """`model_type` is transformers' name, `gguf` that of llama.cpp; `config` what differs from the common sizes."""

    model_type: str
    gguf: str
    tokenizer: Callable[[], Any]
    config: dict[str, Any]
    padding: int = 0  # rows of the embeddings that no token has


FAMILIES: dict[str, Family] = {
    "qwen2": Family(
        "qwen2", "qwen2", qwen_tokenizer,
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}, 9,
    ),
    "qwen3": Family(
        "qwen3", "qwen3", qwen_tokenizer,
        {
            "tie_word_embeddings": False, "head_dim": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        }, 9,
    ),
    "llama3": Family(
        "llama", "llama", llama3_tokenizer,
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama2": Family("llama", "llama", llama2_tokenizer, {"rms_norm_eps": 1e-5, "tie_word_embeddings": False}),
    "mistral": Family(
        "mistral", "llama", mistral_tokenizer,
        {
            "rms_norm_eps": 1e-5, "head_dim": 128, "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    ),
    "mistral_tekken": Family(
        "mistral", "llama", tekken_tokenizer,
        {
            "rms_norm_eps": 1e-5, "head_dim": 64, "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    ),
    "gemma2": Family(
        "gemma2", "gemma2", gemma_tokenizer,
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16, "num_hidden_layers": 4}, 9,
    ),
    "gemma3": Family(
        "gemma3_text", "gemma3", gemma_tokenizer,
        {
            "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16, "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        }, 9,
    ),
}  # fmt: skip


def make(
    family: str, folder: Path, *, seed: int = 0, dtype: str = "bfloat16", shard: str = "5GB", **changes: Any
) -> Path:
    """Write the tiny model of `family` into `folder` (made), and give the folder.

    `shard` is the largest size of one weight file ("200KB" makes many), `changes` overrides values of the config.
    """
    kind = FAMILIES[family]
    tokenizer = kind.tokenizer()
    values = {
        **_SIZES, **kind.config, "vocab_size": len(tokenizer) + kind.padding,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, **changes,
    }  # fmt: skip
    config = AutoConfig.for_model(kind.model_type, **values)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    _draw(model, seed, centre=0.0 if kind.gguf.startswith("gemma") else 1.0)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _draw(model: torch.nn.Module, seed: int, centre: float) -> None:
    """Weights that leave nothing out: norms around `centre`, biases off zero, logits with a spread of about one."""
    draws = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.empty(weight.shape, dtype=torch.float32)
        if "norm" in name:
            values.normal_(centre, 0.1, generator=draws)
        elif weight.dim() == 1:
            values.normal_(0.0, 0.2, generator=draws)
        else:
            values.normal_(0.0, 0.05, generator=draws)
        weight.copy_(values)
