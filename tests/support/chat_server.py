"""An OpenAI-compatible server of the embedded model, which validates requests as the API does."""

import base64
import binascii
import hashlib
import io
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from medvlm_r1.data.sample import VQASample
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey

NAME = "served/thinking-tiny"


class RefusedError(Exception):
    """A request that the API rejects with HTTP 400."""


def demand(condition, message):
    if not condition:
        raise RefusedError(message)


def fields(value, needed, allowed=()):
    demand(isinstance(value, dict), f"{value!r} is no object")
    demand(set(needed) <= set(value) <= {*needed, *allowed}, f"fields {sorted(value)}: needed {needed}")


@dataclass(frozen=True)
class Picture:
    """An image as received."""

    png: bytes

    @property
    def name(self):
        return hashlib.sha256(self.png).hexdigest()

    def load(self):
        with Image.open(io.BytesIO(self.png)) as picture:
            demand(picture.format == "PNG" and picture.mode == "RGB", "the data URL holds no RGB PNG")
            return picture.copy()


@dataclass(frozen=True)
class Conversation:
    """Received messages, with the interface of a prompt style."""

    messages: list

    def render(self, sample, phase):
        return self.messages


def parsed(body):
    """Return the request's messages for the chat template, and its images."""
    fields(body, ["model", "messages"], ["max_tokens", "temperature"])
    demand(isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 0, "max_tokens")
    demand(0 <= body.get("temperature", 1) <= 2, "temperature")
    demand(isinstance(body["messages"], list) and body["messages"], "messages is empty")
    messages, pictures = [], []
    for message in body["messages"]:
        fields(message, ["role", "content"])
        demand(message["role"] in ("system", "user", "assistant"), "role")
        parts = []
        for part in message["content"]:
            demand(isinstance(part, dict), "a part of a content is an object")
            if part.get("type") == "text":
                fields(part, ["type", "text"])
                demand(isinstance(part["text"], str), "text")
                parts.append(part)
            else:
                fields(part, ["type", "image_url"])
                demand(part["type"] == "image_url", f"type {part['type']!r}")
                fields(part["image_url"], ["url"], ["detail"])
                head, _, data = part["image_url"]["url"].partition(",")
                demand(head == "data:image/png;base64", f"data URL {head!r}")
                try:
                    pictures.append(Picture(base64.b64decode(data, validate=True)))
                except binascii.Error:
                    raise RefusedError("base64") from None
                parts.append({"type": "image"})
        messages.append({"role": message["role"], "content": parts})
    return messages, tuple(pictures)


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server on a port of its own.

    Attributes:
        models: names that it lists; ``None`` answers with 404.
        troubles: HTTP statuses of the next responses.
        poison: a text; requests that contain it are rejected.
        responses: bodies of the requests answered with status 200, in order.
        requests: number of requests.
        held: an event; requests above ``limit`` wait for it.
        meeting: a barrier; every request waits there for others.
        changed: function that modifies each response.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, policy):
        super().__init__(("127.0.0.1", 0), Handler)
        self.policy, self.lock = policy, threading.Lock()
        self.models, self.troubles, self.poison = [NAME, "other"], [], None
        self.responses, self.keys, self.requests = [], set(), 0
        self.held, self.limit, self.meeting = None, 0, None
        self.changed = lambda value: value
        self.under_way = self.peak = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Ignore killed clients."""

    def answer(self, body):
        messages, pictures = parsed(body)
        if body["model"] != NAME:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        demand(not (self.poison and self.poison in json.dumps(messages)), "your context is too long")
        sample = VQASample("wire", pictures, "q", ("a", "b"), "A", "", "", "", "")
        sampling = Sampling(max_tokens=body["max_tokens"], temperature=float(body["temperature"]))
        with self.lock:
            prompt = self.policy.encoder.encode(sample, "evaluate", Conversation(messages))
            rollout = ReferenceEngine()(self.policy, [prompt], sampling, NoiseKey(0, 0))
        tokens = int(rollout.lengths[0])
        return 200, {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": NAME,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": rollout.texts[0]},
                    "finish_reason": "length" if rollout.truncated[0] else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": len(prompt.ids),
                "completion_tokens": tokens,
                "total_tokens": len(prompt.ids) + tokens,
            },
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        server = self.server
        if self.path != "/v1/models" or server.models is None:
            return self.send(404, {"error": {"message": "no such page"}})
        models = [{"id": m, "object": "model", "created": 0, "owned_by": "me"} for m in server.models]
        return self.send(200, {"object": "list", "data": models})

    def do_POST(self):
        server = self.server
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/chat/completions":
            return self.send(404, {"error": {"message": "no such page"}})
        with server.lock:
            server.requests += 1
            server.keys.add(self.headers["Authorization"])
            server.under_way += 1
            server.peak = max(server.peak, server.under_way)
            trouble = server.troubles.pop(0) if server.troubles else None
            hold = server.held is not None and server.requests > server.limit
        try:
            if hold:
                server.held.wait(60)
                self.close_connection = True
                return None
            if server.meeting:
                server.meeting.wait(20)
            if trouble:
                return self.send(trouble, {"error": {"message": f"trouble {trouble}"}})
            try:
                demand(self.headers["Content-Type"] == "application/json", "Content-Type")
                status, value = server.answer(json.loads(data))
                value = server.changed(value)
            except RefusedError as error:
                return self.send(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
            with server.lock:
                server.under_way -= 1  # before the client gets the response and may send the next request
                if status == 200:
                    server.responses.append(data)
            self.send(status, value)
            with server.lock:
                server.under_way += 1
        finally:
            with server.lock:
                server.under_way -= 1
        return None
