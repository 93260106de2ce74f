"""vLLM's offline engine as a process: a request per line in, tokens and seconds per line out.

    VLLM_PYTHON vllm_worker.py MODEL '{"dtype": "float32"}'      options of vllm.LLM

It runs in vLLM's own environment and imports nothing of the project.
"""

import json
import os
import sys
import time
from importlib.metadata import version

import torch
from PIL import Image


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM prints too
    import vllm

    llm = vllm.LLM(sys.argv[1], **json.loads(sys.argv[2]))
    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": version("transformers")}
    print(json.dumps(versions), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        images = {path: Image.open(path).convert("RGB") for prompt in request for path in prompt["images"]}
        prompts = [
            {
                "prompt_token_ids": prompt["ids"],
                "multi_modal_data": {"image": [images[path] for path in prompt["images"]]},
            }
            for prompt in request
        ]
        params = [
            vllm.SamplingParams(**prompt["sampling"], logit_bias=dict.fromkeys(prompt["banned"], -100.0))
            for prompt in request
        ]
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        rows = [row for output in outputs for row in output.outputs]
        answer = {
            "seconds": seconds,
            "prompts": [list(output.prompt_token_ids) for output in outputs],
            "tokens": [list(row.token_ids) for row in rows],
            "logprobs": [
                [place[token].logprob for token, place in zip(row.token_ids, row.logprobs, strict=True)]
                for row in rows
            ],
        }
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
