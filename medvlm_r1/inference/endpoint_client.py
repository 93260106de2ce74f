"""The OpenAI client: import, API key, a check before the run, and error messages with remedies."""

import logging
import os
from types import ModuleType

from medvlm_r1.runs.places import pip_install

API_KEY = "OPENAI_API_KEY"  # environment variable with the key, by default
CONNECT_SECONDS = 5.0  # of the connection alone; model.timeout limits the whole request


class EndpointError(RuntimeError):
    """A request to the endpoint failed. The message names URL, model, question and remedy."""


def check_endpoint(url: str, name: str, api_key_variable: str) -> None:
    """Check within seconds that a server answers at ``url`` and serves the model ``name``.

    A server that cannot list its models passes: the first question will show whether it serves ``name``.

    Raises:
        EndpointError: no connection, a rejected API key, or other models.
        ValueError: the package openai is not installed.
    """
    openai = client_library()
    key = api_key(api_key_variable)
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=1, timeout=CONNECT_SECONDS)
    try:
        listed = client.models.list()
    except openai.APITimeoutError as error:
        raise EndpointError(
            f"{url}, model {name}: no answer within {CONNECT_SECONDS:g} s. Wait until the server is ready or "
            "correct model.url."
        ) from error
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
    """Import the package openai, an optional dependency, and silence its log of requests."""
    try:
        import openai
    except ImportError:
        raise ValueError(f"model=endpoint needs the package openai: {pip_install('endpoint')}") from None
    for name in ("openai", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai


def api_key(variable: str) -> str:
    """Return the API key in an environment variable, or ``none``: the client requires some key."""
    return os.environ.get(variable) or "none"


def cause_and_remedy(openai: ModuleType, error: Exception, api_key_variable: str) -> tuple[str, str]:
    """Return the cause of a failed request and its remedy, a phrase each."""
    details = " ".join(str(error).split())[:300]
    if isinstance(error, openai.APITimeoutError):
        return "no answer in time", "Check the server, raise model.timeout or lower model.concurrency"
    if isinstance(error, openai.APIConnectionError):
        return f"no connection ({error.__cause__ or error})", "Start the server or correct model.url"
    status = getattr(error, "status_code", None)
    if status in (401, 403):
        return (
            f"the server rejects the API key (HTTP {status})",
            f"Put the right one into the environment variable {api_key_variable}",
        )
    if status == 404:
        return f"not found ({details})", "Correct model.name, or model.url: it mostly ends in /v1"
    if status == 429 or (status or 0) >= 500:
        return f"the server fails ({details})", "Start again later, or lower model.concurrency"
    return (
        f"the server rejects the request ({details})",
        "If it is too long, lower model.recipe.max_pixels or model.recipe.max_completion_tokens, or "
        "serve the model with a longer context",
    )
