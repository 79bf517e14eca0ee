"""A model behind an HTTP address in the chat-completions form that many servers speak, asked for one letter."""

import json
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from assay.settings import InputError

LETTERS = ("A", "B")
LETTER = re.compile(r"\W*([AB])\b")
PARALLEL = 8  # requests under way at once
ATTEMPTS = 5
LONGEST_WAIT = 60.0  # seconds, whatever the server asks for
LEAST = -50.0  # a log-probability below counts as this, so that no opinion is infinite
TOP = 20  # log-probabilities asked for; the most that servers give


class Endpoint:
    """A model at `base_url`, which ends before "/chat/completions"; address and key default to $OPENAI_BASE_URL and
    $OPENAI_API_KEY.

    The opinion is log p("A") - log p("B") among the likeliest tokens; a letter that is not among them counts as likely
    as the least likely one there. A server that gives no log-probabilities is taken at its word: 1 for A, -1 for B,
    which names a winner and says nothing of how sure it is. A reply without a letter is 0, no opinion, and counted.

    Too many requests (429), faults of the server (5xx) and lost connections are tried again, `ATTEMPTS` times in all,
    after `wait` seconds, then twice that, and so on, or as long as the server asks for. What still fails, and what the
    server refuses, is an InputError.
    """

    def __init__(
        self, model: str, *, base_url: str = "", key: str = "", timeout: float = 60.0, wait: float = 1.0
    ) -> None:
        self.name, self.timeout, self.wait = model, timeout, wait
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL", "")).rstrip("/")
        self.key = key or os.environ.get("OPENAI_API_KEY", "")
        self.num_unread = 0
        self.asks_logprobs = True
        self._given_up = threading.Event()
        if not model:
            raise InputError("the judge's model is missing: write http://host/v1#model, or openai:model")
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(
                f"the judge's address is missing: set OPENAI_BASE_URL to where {model} is served, or write "
                f"http://host/v1#{model}"
            )

    @classmethod
    def from_name(cls, name: str) -> Self:
        """From "http://host/v1#model", or "openai:model" for the address of the environment."""
        if name.startswith("openai:"):
            return cls(name.removeprefix("openai:"))
        base_url, _, model = name.partition("#")
        return cls(model, base_url=base_url)

    def __call__(self, questions: Sequence[str]) -> Tensor:
        """[N] log-odds, in nats, that "A" is the reply to each question rather than "B"."""
        self._given_up.clear()
        with ThreadPoolExecutor(PARALLEL) as pool:
            try:
                found = torch.tensor(list(pool.map(self.ask, questions)), dtype=torch.float64)
            except BaseException:  # the pool waits for its threads: they must not ask again
                self._given_up.set()
                raise
        self.num_unread += int(found.isnan().sum())
        return found.nan_to_num(0.0)

    def ask(self, question: str) -> float:
        """The log-odds of one question; nan for a reply without a letter."""
        told: dict[str, Any] = {"model": self.name, "messages": [{"role": "user", "content": question}]}
        told |= {"max_tokens": 1, "temperature": 0}
        if self.asks_logprobs:
            told |= {"logprobs": True, "top_logprobs": TOP}
        reply = self._post(told)
        try:
            choice = reply["choices"][0]
            content = (choice.get("logprobs") or {}).get("content")
            if content and content[0].get("top_logprobs"):
                return log_odds({t["token"]: float(t["logprob"]) for t in content[0]["top_logprobs"]})
            return word(choice["message"]["content"] or "")
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise InputError(f"{self.base_url}: not a chat completion: {json.dumps(reply)[:200]}") from None

    def _post(self, told: Mapping[str, Any]) -> Any:
        """The server's answer as JSON; asked again where that may help."""
        why = ""
        for attempt in range(ATTEMPTS):
            try:
                with urlopen(self._request(told), timeout=self.timeout) as answer:
                    return json.loads(answer.read())
            except HTTPError as error:
                said = " ".join(error.read().decode(errors="replace").split())[:200]
                if error.code in (400, 422) and "logprobs" in said and "logprobs" in told:
                    self.asks_logprobs = False
                    return self._post({name: v for name, v in told.items() if not name.endswith("logprobs")})
                why = f"{error.code} {error.reason}: {said}"
                if error.code != 429 and error.code < 500:
                    raise InputError(f"{self.base_url} refused {self.name}: {why}") from None
                pause = _seconds(error.headers.get("Retry-After"))
            except ValueError as error:
                raise InputError(f"{self.base_url} answered with something else than JSON ({error})") from None
            except (OSError, HTTPException) as error:
                why, pause = str(error) or type(error).__name__, None
            wait = min(LONGEST_WAIT, self.wait * 2**attempt if pause is None else pause)
            if attempt < ATTEMPTS - 1 and self._given_up.wait(wait):
                break
        raise InputError(f"{self.base_url} gave no answer in {ATTEMPTS} attempts ({why})")

    def _request(self, told: Mapping[str, Any]) -> Request:
        request = Request(f"{self.base_url}/chat/completions", json.dumps(told).encode())
        request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")  # for this server alone
        return request


def log_odds(top: Mapping[str, float]) -> float:
    """log p(A) - log p(B) from the likeliest tokens' log-probabilities; nan where neither is among them."""
    shares = {token: math.exp(max(value, LEAST)) for token, value in top.items()}
    found = [sum(share for token, share in shares.items() if token.strip() == letter) for letter in LETTERS]
    if not any(found):
        return math.nan
    first, second = (math.log(share or min(shares.values())) for share in found)
    return first - second


def word(text: str) -> float:
    """1 for a reply of A, -1 for B, nan for another."""
    found = LETTER.match(text)
    return math.nan if found is None else 1.0 if found[1] == "A" else -1.0


def _seconds(told: str | None) -> float | None:
    """A server's Retry-After, where it is a number."""
    try:
        return max(0.0, float(told or ""))
    except ValueError:
        return None
