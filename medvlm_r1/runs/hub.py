"""Check whether the Hugging Face hub can be reached, without the hub client's retries (over 20 s offline)."""

import threading

import huggingface_hub

PROBE_SECONDS = 3.0


def hub_problem() -> str | None:
    """Return why the hub cannot be reached, or ``None`` if it can; takes at most :data:`PROBE_SECONDS`."""
    problem: list[str | None] = [f"no answer within {PROBE_SECONDS:.0f} s"]

    def probe() -> None:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PROBE_SECONDS)
            problem[0] = None
        except Exception as error:  # the classes depend on the hub client's HTTP library
            problem[0] = str(error)

    # A thread, because no HTTP timeout covers a DNS server that does not answer.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return problem[0]
