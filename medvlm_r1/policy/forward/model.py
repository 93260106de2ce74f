"""The type of a model, with or without PEFT's wrapper, and what our own passes need of it."""

from typing import TYPE_CHECKING, Any, Union

from transformers import PreTrainedModel

if TYPE_CHECKING:
    import peft  # seconds, and only adapters need it

Model = Union[PreTrainedModel, "peft.PeftModel"]


def base_model(model: Model) -> Any:
    """The model below PEFT's wrapper."""
    wrapper: Any = model
    return wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else model


def inner_model(model: Model) -> Any:
    """The module with ``visual`` and ``language_model``, below PEFT's wrapper."""
    return base_model(model).model


def require_full_attention(model: Model) -> None:
    """Check that our own passes can run the model: all tokens meet in the attention of its layers alone.

    Raises:
        ValueError: some layers are of another kind, e.g. Qwen3.5's, which keep a recurrent state.
    """
    kinds = getattr(model.config.text_config, "layer_types", None) or ()
    if others := sorted({*kinds} - {"full_attention"}):
        raise ValueError(
            f"{model.config.model_type} has layers of {', '.join(others)}, which run through transformers' "
            "own forward only: set model.layout=repeated rollout=reference"
        )
