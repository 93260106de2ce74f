"""A real vLLM server of the embedded model, one for all tests of a process.

Not named vllm.py: libraries take any module of that name for vLLM itself.
"""

import shutil

import pytest

from medvlm_r1.policy.loading import resolve
from medvlm_r1.runs.vllm_server import VLLMServer, VLLMServerError, check_python, vllm_python

NAME = "served/thinking-tiny"
CONTEXT = 1024  # the server's limit of prompt and completion in tokens


def thinking_checkpoint(folder):
    """The embedded model with a chat template that opens the think tag, as reasoning models' do.

    On its own this model answers straight away, whatever it sees.
    """
    shutil.copytree(resolve.EMBEDDED, folder)
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("{% if add_generation_prompt %}{{ '<think>' }}{% endif %}")
    return folder


@pytest.fixture(scope="session")
def vllm():
    """The Python of vLLM's environment; the test is skipped where there is none."""
    try:
        check_python(vllm_python())
    except VLLMServerError as error:
        pytest.skip(str(error))
    return vllm_python()


@pytest.fixture(scope="session")
def vllm_server(vllm, tmp_path_factory):
    """A server of the thinking checkpoint, in fp32; a test that stops it must start it again."""
    checkpoint = thinking_checkpoint(tmp_path_factory.mktemp("vllm") / "thinking")
    # One thread, not bound to a core: other tests run beside it.
    env = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    with VLLMServer(
        checkpoint, name=NAME, python=vllm, max_model_len=CONTEXT, max_num_seqs=16, env=env
    ) as server:
        yield server
