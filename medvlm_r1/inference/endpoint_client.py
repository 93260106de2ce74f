"""The OpenAI client: import, API key, a check before the run, and error messages with remedies."""

import logging
import os
from types import ModuleType

CONNECT_SECONDS = 5.0  # to say that nobody is there; an answer may take model.timeout


class EndpointError(RuntimeError):
    """An endpoint that cannot answer. The message names url, model, question and remedy."""


def check_endpoint(url: str, name: str, api_key_variable: str) -> None:
    """Stop within seconds where nobody answers at ``url``, or where ``name`` is not served.

    A server that lists no models is accepted: the first question will tell.

    Raises:
        EndpointError: unreachable, the key is refused, or other models are served.
        ValueError: the package openai is not installed.
    """
    openai = client_library()
    client = openai.OpenAI(
        base_url=url, api_key=api_key(api_key_variable), max_retries=1, timeout=CONNECT_SECONDS
    )
    try:
        listed = client.models.list()
    except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
        cause, remedy = cause_and_remedy(openai, error, api_key_variable)
        raise EndpointError(f"{url}, model {name}: {cause}. {remedy}.") from error
    except openai.APIStatusError:
        return
    served = [model.id for model in getattr(listed, "data", None) or []]
    if served and name not in served:
        raise EndpointError(
            f"{url} does not serve {name}. Give one of these as model.name: {', '.join(served)}"
        )


def client_library() -> ModuleType:
    """The package openai, which is an extra; imported where it is needed."""
    try:
        import openai
    except ImportError:
        raise ValueError(
            "model=endpoint needs the package openai: pip install 'medvlm_r1[endpoint]'"
        ) from None
    for name in ("openai", "httpx2"):  # they report every request
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai


def api_key(variable: str) -> str:
    """The key in an environment variable; the client insists on one, open servers ignore it."""
    return os.environ.get(variable) or "none"


def cause_and_remedy(openai: ModuleType, error: Exception, api_key_variable: str) -> tuple[str, str]:
    """What a failed request means, and what helps."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, openai.APITimeoutError):
        return "no answer in time", "Look at the server, raise model.timeout or lower model.concurrency"
    if isinstance(error, openai.APIConnectionError):
        reason = error.__cause__ or error
        return f"nobody can be reached there ({reason})", "Start the server or correct model.url"
    status = getattr(error, "status_code", None)
    if status in (401, 403):
        return (
            f"the server refuses the key (HTTP {status})",
            f"Put the right one into the environment variable {api_key_variable}",
        )
    if status == 404:
        return f"not found ({said})", "Correct model.name, or model.url: it mostly ends in /v1"
    if status == 429 or (status or 0) >= 500:
        return f"the server is not able to ({said})", "Start again later, or lower model.concurrency"
    return (
        f"the server refuses the request ({said})",
        "Where it is too long, lower model.recipe.max_pixels or model.recipe.max_completion_tokens, or "
        "serve the model with a longer context",
    )
