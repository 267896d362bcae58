"""What an Ollama server did not do: one sentence, and whether a later try may do better."""

_WORDS = 300  # characters of Ollama's own words in a sentence
_FULL = ("no space left", "not enough space", "not enough disk", "insufficient disk", "quota exceeded")
# Said with a 500, or in a stream that has no status: the model is not to be used, today or tomorrow.
_FINAL = (
    "error loading model",
    "unable to load model",
    "unsupported model",
    "unknown model architecture",
    "not in gguf format",
    "invalid file magic",
    "unknown type",
    "unsupported quantization",
    "only one adapter",
    "template:",
)
_NO_ADAPTERS = "lora adapters are no longer supported"
# Of the server, or of what stands before it; not of the model.
_LATER = frozenset({401, 403, 405, 407, 408, 425, 429})


class Trouble(Exception):
    """What Ollama did not do, in one sentence. `retry`: a later try may do better."""

    def __init__(self, reason: str, retry: bool) -> None:
        super().__init__(reason)
        self.reason, self.retry = reason, retry


class Stopped(Trouble):
    """The daemon wants to end; the call was broken off, and goes well from its beginning later."""

    def __init__(self, doing: str) -> None:
        super().__init__(f"{doing} was stopped; it is begun anew", retry=True)


class NoAdapters(Trouble):
    """This Ollama serves no adapter on top of a base (from 0.34.1 on): the merged model has to be made."""

    def __init__(self, words: str) -> None:
        super().__init__(f"Ollama refused the adapter: {words}; a merged model is needed", retry=False)


def trouble_of(error: Exception, doing: str, host: str, timeout: float) -> Trouble | None:
    """What an exception of the `ollama` package, or of httpx below it, means. None: it is none of theirs."""
    import httpx
    import ollama

    where = f"at {host} ([serve] host)"
    if isinstance(error, ollama.ResponseError):
        return _refused(doing, str(error.error), error.status_code)
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError) or type(error) is ConnectionError:
        return Trouble(f"no Ollama answers {where}: {doing}", retry=True)
    if isinstance(error, httpx.TimeoutException):
        return Trouble(f"Ollama {where} was silent for {timeout:g} s: {doing}", retry=True)
    if isinstance(error, httpx.HTTPError | OSError):
        return Trouble(f"the connection to Ollama {where} broke: {doing}: {_line(error)}", retry=True)
    if isinstance(error, httpx.InvalidURL):
        return Trouble(f"[serve] host = {host!r} is no address: {_line(error)}", retry=True)
    if isinstance(
        error, ValueError | TypeError | LookupError | AttributeError
    ):  # of JSON, and of what is in it
        reason = f"what is {where} does not answer as Ollama does: {doing}: {_line(error)}"
        return Trouble(reason, retry=True)
    return None


def _refused(doing: str, words: str, status: int) -> Trouble:
    """An answer that is no success, in Ollama's words. Below 0: an error in a stream, which has no status."""
    said, low = _line(words) or f"status {status}", words.lower()
    if _NO_ADAPTERS in low:
        return NoAdapters(said)
    if status == 507 or any(sign in low for sign in _FULL):
        return Trouble(f"the disk of Ollama is full: {doing}: {said}", retry=True)
    final = any(sign in low for sign in _FINAL)
    retry = (status < 0 or status >= 500 or status < 400 or status in _LATER) and not final
    return Trouble(f"Ollama {'failed' if retry else 'refused'}: {doing}: {said}", retry)


def _line(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _WORDS else text[: _WORDS - 1] + "…"
