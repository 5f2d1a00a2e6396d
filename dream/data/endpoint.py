"""Answers of an OpenAI-compatible endpoint (vLLM, llama.cpp, Ollama …): concurrent requests, retries with back-off.

The key comes from ``DREAM_ENDPOINT_KEY``, else ``OPENAI_API_KEY``, and is written nowhere; a server that wants none gets a
placeholder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dream.errors import AGAIN, DreamError

if TYPE_CHECKING:
    from dream.config.sections import Questions

RETRIES = 6  # per request, after 0.5, 1, 2, 4, 8 and 8 seconds, or when the server says (Retry-After)
TIMEOUT = 120  # seconds for one answer


class Endpoint:
    """A chat model behind a URL.

    Args:
        settings: ``endpoint`` and ``endpoint_model`` say where and which, ``batch`` how many requests run at a time.
    """

    def __init__(self, settings: Questions) -> None:
        from openai import OpenAI

        key = os.environ.get("DREAM_ENDPOINT_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        self.settings = settings
        self.client = OpenAI(base_url=settings.endpoint, api_key=key, max_retries=RETRIES, timeout=TIMEOUT)

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """The answer to every prompt, in their order, greedily decoded.

        Raises:
            DreamError: the endpoint is down, refuses the key or the request, after all retries.
        """
        with ThreadPoolExecutor(self.settings.batch) as pool:
            return list(pool.map(self._answer, prompts))

    def _answer(self, prompt: str) -> str:
        from openai import APIConnectionError, APIStatusError

        settings = self.settings
        where = f"questions.endpoint {settings.endpoint}"
        try:
            answer = self.client.chat.completions.create(
                model=settings.endpoint_model or "",
                messages=[{"role": "user", "content": prompt}],
                max_tokens=settings.max_new_tokens,
                temperature=0,
                seed=0,
            )
        except APIConnectionError:
            raise DreamError(f"{where} cannot be reached", f"Start its server or correct the URL. {AGAIN}") from None
        except APIStatusError as error:
            if error.status_code in (401, 403):
                raise DreamError(f"{where} refuses the key", "Set DREAM_ENDPOINT_KEY or OPENAI_API_KEY") from None
            raise DreamError(
                f"{where} answers with status {error.status_code} for model {settings.endpoint_model}",
                f"Check questions.endpoint_model and the server's log. {AGAIN}",
            ) from None
        if not answer.choices:
            raise DreamError(f"{where} gives no answer", "It does not speak OpenAI's chat completions: correct the URL")
        return answer.choices[0].message.content or ""
