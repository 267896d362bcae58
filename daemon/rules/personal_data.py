"""Names, addresses and phone numbers replaced by what they are, found by Presidio (optional).

Finding them is guesswork by a statistical model: this reduces what a model may learn of people, and promises no
more. Needs `pip install 'engramd[personal-data]'` and a language model of spaCy; nothing is fetched by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Self

from daemon.rules import checked

# What Presidio calls it -> what stands in its place
SHOWN = {
    "PERSON": "[name]",
    "LOCATION": "[address]",
    "PHONE_NUMBER": "[phone number]",
    "EMAIL_ADDRESS": "[mail address]",
}
DEFAULTS: dict[str, Any] = {
    "presidio": False,
    "entities": ["PERSON", "LOCATION", "PHONE_NUMBER"],
    "language": "en",
    "model": "en_core_web_sm",
    "score": 0.5,
}


@dataclass(frozen=True)
class PersonalDataRules:
    entities: tuple[str, ...]  # in Presidio's names
    language: str
    model: str  # of spaCy
    score: float  # from 0 to 1: how sure the finding must be

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Self | None:
        """The checked table `[personal_data]`; None where it is off. ValueError, one sentence."""
        rules = cls(
            entities=tuple(checked.strings(table["entities"], "personal_data.entities")),
            language=checked.text(table, "personal_data.language"),
            model=checked.text(table, "personal_data.model"),
            score=checked.number(table, "personal_data.score", 0.0, 1.0),
        )
        if not checked.flag(table, "personal_data.presidio"):
            return None
        if find_spec("presidio_analyzer") is None:
            raise ValueError(
                "personal_data.presidio is true, but Presidio is not installed: pip install 'engramd[personal-data]'"
            )
        if find_spec(rules.model) is None:
            raise ValueError(
                f"personal_data.model is {rules.model!r}, which is not installed: "
                f"python -m spacy download {rules.model}"
            )
        return rules


@lru_cache(maxsize=1)
def _analyzer(language: str, model: str) -> Any:
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": language, "model_name": model}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    return AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=[language])


@lru_cache(maxsize=4096)  # the turns of a chat come again as context
def redacted(text: str, rules: PersonalDataRules) -> str:
    """The text with fewer names, addresses and phone numbers than before."""
    if not text.strip():
        return text
    found = _analyzer(rules.language, rules.model).analyze(
        text=text, language=rules.language, entities=list(rules.entities), score_threshold=rules.score
    )
    end = len(text)
    for one in sorted(
        found, key=lambda one: (-one.start, -one.end)
    ):  # from the end, so that places stay true
        if one.end <= end:
            shown = SHOWN.get(one.entity_type, f"[{one.entity_type.lower().replace('_', ' ')}]")
            text = f"{text[: one.start]}{shown}{text[one.end :]}"
            end = one.start
    return text
