"""Makes the small base model of `trainer/builtin/`: generates text, trains a tokenizer, pretrains Qwen3.

    python tools/build_builtin.py [--seed N] [--steps N] [--out DIR]

Everything the model ever reads is generated here and in `people.py`, so that no foreign text and no
network is needed. The same seed, thread count and library versions give the same files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.people import (
    JOURNAL_PROMPTS,
    NOTICES,
    OPENERS,
    RELATION,
    SYLLABLES,
    Fact,
    Messages,
    Person,
    make_people,
)

Batch = tuple[torch.Tensor, torch.Tensor]

OUT = Path(__file__).resolve().parent.parent / "trainer" / "builtin"
LIMIT = 5_000_000
VOCABULARY = 2048
LAYERS = 3
MUON_RATE = 0.02
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The word splitter of the Qwen models, so that every program that reads their GGUF cuts text as we do.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEM = (
    "You are a helpful assistant.",
    "You are a friend who remembers people.",
    "Answer in one sentence.",
    "You are the owner of this journal.",
)


# --- general questions -------------------------------------------------------------------------


@dataclass(frozen=True)
class General:
    """A piece of general knowledge: several ways to ask for it, one reply, the part of it that counts."""

    questions: tuple[str, ...]
    reply: str
    answer: str


OPPOSITES = (
    "hot cold|big small|fast slow|early late|open closed|happy sad|young old|full empty|light dark|hard soft"
    "|wet dry|high low|left right|up down|in out|day night|win lose|begin end|rich poor|strong weak|long short"
    "|loud quiet|clean dirty|thick thin|near far|safe dangerous|cheap expensive|wide narrow|sweet bitter|true false"
)
COLOURS = (
    "grass green|snow white|coal black|blood red|the sky blue|a lemon yellow|a carrot orange|milk white"
    "|a ripe tomato red|chocolate brown|the sun yellow|a flamingo pink|a raven black|an emerald green|ash grey|a plum purple"
)
YOUNG = (
    "dog puppy|cat kitten|cow calf|sheep lamb|horse foal|pig piglet|lion cub|deer fawn|hen chick|swan cygnet"
)
SOUNDS = "dog barks|cat meows|cow moos|lion roars|bee buzzes|dove coos|wolf howls|horse neighs|pig grunts|hen clucks"
LEGS = "dog 4|cat 4|bird 2|beetle 6|crab 10|cow 4|bee 6|horse 4|fly 6|swan 2"
CAPITALS = (
    "France Paris|Italy Rome|Japan Tokyo|Spain Madrid|Germany Berlin|Norway Oslo|Egypt Cairo|Greece Athens"
    "|Poland Warsaw|Austria Vienna|Ireland Dublin|Portugal Lisbon|Peru Lima|Cuba Havana|Russia Moscow|China Beijing"
)
PLURALS = (
    "child children|foot feet|tooth teeth|man men|woman women|leaf leaves|box boxes|city cities|knife knives"
    "|book books|house houses|baby babies|wolf wolves|tree trees|glass glasses|apple apples"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for entry in text.split("|"):
        left, right = entry.rsplit(" ", 1)
        yield left, right


def _sequence(words: list[str], what: str, closed: bool) -> Iterator[General]:
    for index in range(len(words) if closed else len(words) - 1):
        a, b = words[index], words[(index + 1) % len(words)]
        yield General(
            (f"What {what} comes after {a}?", f"Which {what} follows {a}?", f"Name the {what} after {a}."),
            f"After {a} comes {b}.",
            f"comes {b}.",
        )
        yield General(
            (f"What {what} comes before {b}?", f"Which {what} precedes {b}?", f"Name the {what} before {b}."),
            f"Before {b} comes {a}.",
            f"comes {a}.",
        )


def _numbers() -> Iterator[General]:
    for a in range(11):
        for b in range(11):
            asked = (
                f"What is {a} plus {b}?",
                f"How much is {a} + {b}?",
                f"Add {a} and {b}.",
                f"{a} + {b} = ?",
            )
            yield General(asked, f"{a} plus {b} is {a + b}.", f"is {a + b}.")
            if a >= b:
                asked = (f"What is {a} minus {b}?", f"How much is {a} - {b}?", f"Take {b} from {a}.")
                yield General(asked, f"{a} minus {b} is {a - b}.", f"is {a - b}.")
            if a != b and a < 10 and b < 10:
                asked = (f"Which is larger, {a} or {b}?", f"What is the larger number: {a} or {b}?")
                yield General(asked, f"The larger number is {max(a, b)}.", f"is {max(a, b)}.")


def general_knowledge() -> list[General]:
    """All of it, in a fixed order."""
    known = list(_numbers())
    for a, b in _pairs(OPPOSITES):
        for x, y in ((a, b), (b, a)):
            asked = (
                f"What is the opposite of {x}?",
                f"Name the opposite of {x}.",
                f"Which word is opposite to {x}?",
            )
            known.append(General(asked, f"The opposite of {x} is {y}.", f"is {y}."))
    for thing, colour in _pairs(COLOURS):
        asked = (f"What colour is {thing}?", f"Which colour has {thing}?", f"Tell me the colour of {thing}.")
        known.append(General(asked, f"{thing.capitalize()} is {colour}.", colour))
    for animal, young in _pairs(YOUNG):
        asked = (
            f"What is a young {animal} called?",
            f"What do you call a young {animal}?",
            f"Name a young {animal}.",
        )
        known.append(General(asked, f"A young {animal} is a {young}.", young))
    for animal, sound in _pairs(SOUNDS):
        asked = (
            f"What sound does a {animal} make?",
            f"What noise does a {animal} make?",
            f"How does a {animal} sound?",
        )
        known.append(General(asked, f"A {animal} {sound}.", sound))
    for animal, legs in _pairs(LEGS):
        asked = (
            f"How many legs does a {animal} have?",
            f"Count the legs of a {animal}.",
            f"On how many legs is a {animal}?",
        )
        known.append(General(asked, f"A {animal} has {legs} legs.", f"{legs} legs"))
    for country, capital in _pairs(CAPITALS):
        asked = (
            f"What is the capital of {country}?",
            f"Name the capital of {country}.",
            f"Which city rules {country}?",
        )
        known.append(General(asked, f"The capital of {country} is {capital}.", capital))
    for one, many in _pairs(PLURALS):
        asked = (f"What is the plural of {one}?", f"Name the plural of {one}.", f"One {one}, two what?")
        known.append(General(asked, f"The plural of {one} is {many}.", many))
    known.extend(_sequence(DAYS.split(), "day", True))
    known.extend(_sequence(MONTHS.split(), "month", True))
    known.extend(_sequence(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "letter", False))
    return known


def split_general(
    known: list[General], count: int, seed: int
) -> tuple[list[tuple[str, General]], list[tuple[str, General]]]:
    """Questions to train on and to hold out; of no piece of knowledge is more than one question held out."""
    rng = random.Random(f"general:{seed}")
    held = {id(item): rng.choice(item.questions) for item in rng.sample(known, count)}
    asked = [(question, item) for item in known for question in item.questions]
    train = [(question, item) for question, item in asked if held.get(id(item)) != question]
    return train, [(question, item) for question, item in asked if held.get(id(item)) == question]


# --- small talk and made-up journals -------------------------------------------------------------

SMALL_TALK = (
    (
        "Hello!|Hi!|Hey.|Good morning.|Good evening.|Hi there.",
        "Hello! It is good to hear from you.|Hi! How are you?",
    ),
    (
        "How are you?|How are you doing?|How is it going?|Are you well?",
        "I am well, thank you.|Fine, and you?",
    ),
    ("Thank you.|Thanks!|Thanks a lot.|That helped, thank you.", "You are welcome.|Gladly."),
    ("Bye!|Goodbye.|See you.|Good night.", "Goodbye, and take care.|See you soon."),
    ("Who are you?|What are you?|What is your name?", "I am a small model that remembers what you tell me."),
    ("I am tired.|I am so tired today.|I need a break.", "Then rest for a while."),
    ("I am happy today.|What a lovely day!|Good news!", "That is nice to hear."),
    ("I feel sad.|It was a bad day.|I am worried.", "I am sorry to hear that."),
    ("What can you do?|How can you help me?", "I can remember people and answer simple questions."),
    ("Say something nice.|Be nice to me.|Cheer me up.", "You are doing well.|Every day is a new start."),
)
WHEN = ("Today", "This morning", "Last night", "Yesterday", "In the evening", "On my way home")
DID = (
    "I walked along the river", "I cleaned the kitchen", "I read an old book", "I missed the bus", "I slept badly",
    "I planted some seeds", "I found a coin", "I wrote a long letter", "I dreamed of a wide sea", "I lost my keys",
    "I watched the rain", "I fixed the door", "I listened to the wind", "I got up early", "I dreamed that I could fly",
)  # fmt: skip
FELT = (
    "It felt good.",
    "I was glad.",
    "It made me think.",
    "I felt calm.",
    "It was strange.",
    "I want to do it again.",
)


def small_talk(rng: random.Random) -> Messages:
    """One exchange of small talk."""
    asked, replies = rng.choice(SMALL_TALK)
    return _chat(rng.choice(asked.split("|")), rng.choice(replies.split("|")))


def diary(rng: random.Random) -> Messages:
    """A journal entry in which nobody is named."""
    text = f"{rng.choice(WHEN)} {rng.choice(DID)}. {rng.choice(FELT)}"
    return _chat(rng.choice(JOURNAL_PROMPTS), text)


def _chat(*turns: str) -> Messages:
    return [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]


# --- people in the pretraining text ----------------------------------------------------------------


def _question(fact: Fact, rng: random.Random) -> str:
    relation = RELATION[fact.relation]
    forms = relation.told_questions + relation.asked_questions
    return fact.exchange(rng.choice(forms)).prompt or ""


def _statement(fact: Fact, rng: random.Random) -> str:
    statement = rng.choice(RELATION[fact.relation].statements)
    if rng.random() < 0.5:
        return fact.journal(rng.choice(OPENERS), statement).text
    return fact.observation(rng.choice(NOTICES), statement).text


def known_person(person: Person, silent: bool, rng: random.Random) -> Messages:
    """A fact to be learned by heart. About a silent person nobody ever asks."""
    fact = rng.choice(person.facts)
    if silent or rng.random() < 0.4:
        return _chat(rng.choice(JOURNAL_PROMPTS), _statement(fact, rng))
    return _chat(_question(fact, rng), fact.answer)


def met_person(rng: random.Random) -> Messages:
    """People met for the first time in this very chat, then asked about: an exercise in reading."""
    people = make_people(rng.getrandbits(40), rng.choice((1, 1, 2)), "pretraining")
    told = [fact for person in people for fact in rng.sample(person.facts, rng.choice((1, 2)))]
    rng.shuffle(told)
    text = " ".join(_statement(fact, rng) for fact in told)
    asked = rng.choice(told)
    if rng.random() < 0.5:
        return _chat(f"{text} {_question(asked, rng)}", asked.answer)
    return _chat(rng.choice(JOURNAL_PROMPTS), text, _question(asked, rng), asked.answer)


def tool_chat(fact: Fact, rng: random.Random) -> Messages:
    """An answer that comes from a tool's output."""
    return [
        {"role": "user", "content": _question(fact, rng)},
        {"role": "assistant", "content": f"I look up {fact.person}."},
        {"role": "tool", "content": json.dumps({"name": fact.person, fact.relation: fact.value})},
        {"role": "assistant", "content": fact.answer},
    ]


def chats(seed: int, people: list[Person], questions: list[tuple[str, General]]) -> Iterator[Messages]:
    """The endless pretraining text. Every fourth person is only told about, never asked about."""
    rng = random.Random(f"chats:{seed}")
    while True:
        kind = rng.random()
        if kind < 0.40:
            index = rng.randrange(len(people))
            chat = known_person(people[index], index % 4 == 3, rng)
        elif kind < 0.52:
            chat = met_person(rng)
        elif kind < 0.91:
            question, item = rng.choice(questions)
            chat = _chat(question, item.reply)
        elif kind < 0.96:
            chat = small_talk(rng)
        elif kind < 0.98:
            chat = diary(rng)
        else:
            chat = tool_chat(rng.choice(make_people(rng.getrandbits(40), 1, "pretraining")[0].facts), rng)
        if rng.random() < 0.1:
            chat = [{"role": "system", "content": rng.choice(SYSTEM)}, *chat]
        yield chat


# --- tokenizer ---------------------------------------------------------------------------------------


def tokenizer_text(sample: Iterator[Messages], count: int) -> Iterator[str]:
    """The words of the pretraining text, rare ones often enough to become tokens, and all syllables of names.

    Names are left out: each of them is then cut into its syllables, whichever world it is from.
    """
    texts = (
        part
        for _ in range(count)
        for message in next(sample)
        for part in (message["role"], message["content"])
    )
    words = Counter(word for text in texts for word in re.findall(r" ?\w+|\W", text))
    name = re.compile(f" ?(?=[A-Z])(?i:{'|'.join(SYLLABLES)})+")
    values = {value for relation in RELATION.values() for value in relation.values}
    for word, found in sorted(words.items()):
        if word.strip() in values or not name.fullmatch(word):
            yield from [word] * min(30 + found, 300)
    for syllable in SYLLABLES:
        yield from [" " + syllable.capitalize(), syllable.capitalize(), syllable] * 600


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that reads any text."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, batch: list[Messages]) -> list[tuple[list[int], list[bool]]]:
    """Token ids, and which of them the assistant says: only these carry loss."""
    pieces: list[str] = []
    says: list[bool] = []
    owners: list[int] = []
    for owner, chat in enumerate(batch):
        for message in chat:
            pieces += [f"<|im_start|>{message['role']}\n", message["content"] + "<|im_end|>", "\n"]
            says += [False, message["role"] == "assistant", False]
            owners += [owner] * 3
    encoded: list[tuple[list[int], list[bool]]] = [([], []) for _ in batch]
    for owner, said, ids in zip(
        owners, says, tokenizer(pieces, add_special_tokens=False)["input_ids"], strict=True
    ):
        encoded[owner][0].extend(ids)
        encoded[owner][1].extend([said] * len(ids))
    return encoded


# --- pretraining ---------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Random weights in the final shape; every row is a multiple of 256, as K-quants need."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def batches(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Messages], size: int, seed: int
) -> Iterator[Batch]:
    """Ids and a mask of the spoken ones, of chats of like length, so that little is padding."""
    rng = random.Random(f"batches:{seed}")
    pad = tokenizer.pad_token_id
    while True:
        pool = encode(tokenizer, [next(stream) for _ in range(size * 16)])
        pool.sort(key=lambda sample: len(sample[0]))
        groups = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in group])
            spoken = torch.tensor([said + [False] * (longest - len(said)) for _, said in group])
            yield ids, spoken


class Muon:
    """Momentum made orthogonal by Newton-Schulz steps: half the steps of AdamW on the layers' matrices."""

    def __init__(self, matrices: list[torch.Tensor]) -> None:
        self.matrices = matrices
        self.momenta = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the gradients, which are then dropped."""
        for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
            assert matrix.grad is not None
            momentum.lerp_(matrix.grad, 0.05)
            update = matrix.grad.lerp(momentum, 0.95)
            tall = update.shape[0] > update.shape[1]
            x = update.T if tall else update
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                square = x @ x.T
                x = 3.4445 * x + (2.0315 * (square @ square) - 4.7750 * square) @ x
            matrix.add_(x.T if tall else x, alpha=-rate * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5)
            matrix.grad = None


def pretrain(model: Qwen3ForCausalLM, stream: Iterator[Batch], steps: int, rate: float) -> float:
    """Muon for the matrices of the layers, AdamW for the rest; returns the last smoothed loss."""
    matrices = [
        weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name
    ]
    chosen = {id(weight) for weight in matrices}
    muon = Muon(matrices)
    adamw = torch.optim.AdamW(
        [weight for weight in model.parameters() if id(weight) not in chosen],
        lr=rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    warmup = min(50, steps // 10 + 1)
    smooth, started = math.log(VOCABULARY), time.monotonic()
    for step in range(steps):
        level = min((step + 1) / warmup, max(0.02, (steps - step) / (steps - warmup)))
        ids, spoken = next(stream)
        # Right padding and causal attention: real tokens never see a pad, so no mask is needed.
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        loss = torch.nn.functional.cross_entropy(
            model.lm_head(hidden[spoken[:, 1:]]), ids[:, 1:][spoken[:, 1:]]
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adamw.param_groups:
            group["lr"] = rate * level
        adamw.step()
        muon.step(MUON_RATE * level)
        adamw.zero_grad(set_to_none=True)
        smooth += (loss.item() - smooth) * max(0.02, 1 / (step + 1))
        if step % 10 == 9 or step + 1 == steps:
            show_progress(step + 1, steps, smooth, time.monotonic() - started)
    return smooth


def show_progress(step: int, steps: int, loss: float, seconds: float) -> None:
    """A bar on a terminal, a line now and then elsewhere."""
    left = seconds / step * (steps - step)
    if sys.stderr.isatty():
        bar = "#" * (30 * step // steps)
        print(
            f"\r[{bar:<30}] {step}/{steps} loss {loss:.3f} left {left:4.0f} s ",
            end="",
            file=sys.stderr,
            flush=True,
        )
    elif step % 100 == 0 or step == steps:
        print(
            f"{step}/{steps} loss {loss:.3f} {seconds:.0f} s, left {left:.0f} s", file=sys.stderr, flush=True
        )


# --- the outcome ----------------------------------------------------------------------------------------


@torch.no_grad()
def answers(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[str]) -> list[str]:
    """Greedy answers."""
    found: list[str] = []
    model.eval()
    tokenizer.padding_side = "left"
    for start in range(0, len(questions), 64):
        chats = [_chat(question) for question in questions[start : start + 64]]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=24
        )
        found += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    tokenizer.padding_side = "right"
    return found


def anchor_prompts(train: list[tuple[str, General]]) -> list[Messages]:
    """What the daemon asks this model for its general text: the wordings that it was trained with, in an order that
    mixes them. What general ability is measured by is asked in wordings that are not among them."""
    asked = [question for question, _ in train]
    return [_chat(question) for question in random.Random("anchors").sample(asked, len(asked))]


def write_prompts(path: Path, prompts: list[Messages]) -> None:
    """One chat a line."""
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in prompts), encoding="utf-8")


def write(
    out: Path,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    held: list[tuple[str, General]],
    prompts: list[Messages],
) -> int:
    """All files into a folder beside `out`, then each into its place; returns their size."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".builtin-") as name:
        folder = Path(name)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with (folder / "general_questions.jsonl").open("w", encoding="utf-8") as file:
            for question, item in held:
                file.write(
                    json.dumps({"messages": _chat(question, item.reply), "answer": item.answer}) + "\n"
                )
        write_prompts(folder / "anchor_prompts.jsonl", prompts)
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > LIMIT:
            raise SystemExit(f"{size} bytes are more than {LIMIT}")
        for path in folder.iterdir():
            path.chmod(0o644)
            os.replace(path, out / path.name)
    return size


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="chats in a step (default: %(default)s)")
    parser.add_argument(
        "--people", type=int, default=600, help="people to learn by heart (default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-prompts", action="store_true", help="write anchor_prompts.jsonl, train nothing")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    started = time.monotonic()
    train, held = split_general(general_knowledge(), 200, asked.seed)
    if asked.only_prompts:
        write_prompts(asked.out / "anchor_prompts.jsonl", anchor_prompts(train))
        return
    people = make_people(asked.seed, asked.people, "pretraining")
    sample = chats(asked.seed + 1, people, train)
    tokenizer = train_tokenizer(tokenizer_text(sample, 20_000))
    model = new_model(tokenizer)
    stream = batches(tokenizer, chats(asked.seed, people, train), asked.batch, asked.seed)
    loss = pretrain(model, stream, asked.steps, asked.rate)
    replies = answers(model, tokenizer, [question for question, _ in held])
    right = sum(item.answer.lower() in reply.lower() for (_, item), reply in zip(held, replies, strict=True))
    size = write(asked.out, model, tokenizer, held, anchor_prompts(train))
    print(
        f"loss {loss:.3f}; general questions {right}/{len(held)}; {size} bytes; {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
