"""The model: everything that is particular to Qwen2-VL.

==========  ==============================================================================
weights.py  where a checkpoint is, and whether this machine can run it
load.py     a checkpoint becomes a :class:`Policy`; the recipe that goes with a model
encode.py   a question becomes tensors, in a DataLoader worker
policy.py   log-probabilities, reference, generation, saving
==========  ==============================================================================
"""

from medvlm_r1.policy.encode import EncodedPrompt, Encoder, PromptBatch, collate
from medvlm_r1.policy.load import Recipe, load_encoder, load_policy
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.weights import MissingGPUError, MissingWeightsError, check_device, find_weights

__all__ = [
    "EncodedPrompt",
    "Encoder",
    "MissingGPUError",
    "MissingWeightsError",
    "Policy",
    "PromptBatch",
    "Recipe",
    "check_device",
    "collate",
    "find_weights",
    "load_encoder",
    "load_policy",
]
