"""The model card: ``README.md`` of a model directory, rendered from its ``medvlm_r1.json``."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from medvlm_r1.evaluate.statistics import Interval
from medvlm_r1.report.methods import method_title
from medvlm_r1.report.tables.table import percent, set_name, span

_SNIPPET = """\
{% if adapter and record.base == "embedded" %}
from importlib.resources import files

{% endif %}
from PIL import Image
{% if adapter %}
from peft import PeftModel
{% endif %}
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil
{% if adapter %}
from transformers import GenerationConfig
{% endif %}

folder = "."  # this directory, or its name on the hub
{% if adapter %}
{% if record.base_on_hub %}
base = "{{ record.base }}"
{% elif record.base == "embedded" %}
base = files("medvlm_r1") / "tiny"
{% else %}
base = "path/to/{{ record.base }}"
{% endif %}
model = AutoModelForImageTextToText.from_pretrained(base, \
{{ "revision=" ~ (record.revision | string | repr) ~ ", " if record.revision }}dtype="{{ record.dtype }}")
model = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False).eval()
model.get_base_model().generation_config = GenerationConfig.from_pretrained(folder)
{% else %}
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
{% endif %}
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

image = Image.open("scan.png").convert("RGB")
{% if record.image_size %}
image = image.resize(({{ record.image_size }}, {{ record.image_size }}), Image.Resampling.BICUBIC)
{% endif %}
{% if record.prompt.layout == "lines" %}
question = "Which organ is marked?\\nA) liver\\nB) left kidney\\nC) spleen"
{% else %}
question = "Which organ is marked? A)liver, B)left kidney, C)spleen"
{% endif %}
prompt = {{ record.prompt.evaluate | repr }}

text = prompt.replace("{Question}", question)
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
chat = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
vision = processor(image, return_tensors="pt")
image_tokens = int(vision["image_grid_thw"].prod()) // processor.merge_size**2
chat = chat.replace("<|image_pad|>", "<|image_pad|>" * image_tokens)
inputs = tokenizer(chat, add_special_tokens=False, return_tensors="pt")
token_types = (inputs["input_ids"] == model.config.image_token_id).int()
tokens = model.generate(**inputs, **vision, mm_token_type_ids=token_types)
print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def model_card(record: dict, adapter: bool) -> str:
    """Render the card as Markdown. It names no directory of this machine.

    Args:
        record: contents of ``medvlm_r1.json``.
        adapter: whether the directory has a PEFT adapter instead of all weights.
    """
    environment = Environment(
        loader=PackageLoader("medvlm_r1.artifacts", "."),
        autoescape=False,  # Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "rate": _rate, "set_name": set_name, "repr": repr}
    return environment.get_template("model_card.md").render(
        record=record,
        training=record["training"],
        results=record["results"],
        versions=record["versions"],
        adapter=adapter,
        merged=not adapter and record["training"]["adapter"],
        base="the embedded tiny model" if record["base"] == "embedded" else f"`{record['base']}`",
        method_title=method_title,
        snippet=environment.from_string(_SNIPPET).render(record=record, adapter=adapter),
    )


def _rate(interval: dict) -> str:
    """``67.8 (62.3-72.8)``, in percent."""
    interval = Interval(**interval)
    return f"{percent(interval.value)} ({span(interval)})"
