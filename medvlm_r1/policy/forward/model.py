"""The type of a Qwen2-VL model, with or without PEFT's wrapper."""

from typing import TYPE_CHECKING, Any, Union

from transformers import PreTrainedModel

if TYPE_CHECKING:
    import peft  # seconds, and only adapters need it

Model = Union[PreTrainedModel, "peft.PeftModel"]


def inner_model(model: Model) -> Any:
    """The module with ``visual`` and ``language_model``, below PEFT's wrapper."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model
