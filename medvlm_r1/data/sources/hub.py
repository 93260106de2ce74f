"""Is the model hub there? One short probe, because the hub client's own retries take over 20 s offline."""

import threading

import huggingface_hub

PROBE_SECONDS = 3.0


def hub_problem() -> str | None:
    """Why the hub cannot be reached; ``None`` if it answers. Takes :data:`PROBE_SECONDS` at most."""
    problem: list[str | None] = [f"no answer within {PROBE_SECONDS:.0f} s"]

    def probe() -> None:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PROBE_SECONDS)
            problem[0] = None
        except Exception as error:  # which classes depends on the HTTP library that the hub client uses
            problem[0] = str(error)

    # A thread, because no HTTP timeout covers a name server that does not answer.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return problem[0]
