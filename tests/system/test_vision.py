"""An image through the whole path: HTTP, gateway, bus, worker. Random weights prove the path, not the eyesight."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.support import tiny_models
from tests.support.cluster import cluster, wait_until

MODEL = "test/eyes"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with cluster(tmp_path_factory.mktemp("eyes"), LLMLB_CONTEXT_LENGTH="1024") as it:
        folder: Path = it.root / "one" / "models" / "test" / "eyes"
        folder.mkdir(parents=True)
        tiny_models.write_text_model(folder / "model-F32.gguf")
        tiny_models.write_projector(folder / "mmproj-F32.gguf")
        process = it.start("serve", home="one").wait_ready()
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
            wait_until(lambda: MODEL in [model.id for model in made.models.list()], 10, "the node has joined")
            yield made


def turn(data: bytes, kind: str = "png") -> list[Any]:
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return [
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}],
        }
    ]


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_an_image_is_answered(client: openai.OpenAI, kind: str) -> None:
    plain = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is this?"}], max_tokens=1
    )
    answer = client.chat.completions.create(model=MODEL, messages=turn(picture(kind), kind), max_tokens=6)
    assert answer.usage is not None
    assert plain.usage is not None
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens
    assert answer.usage.completion_tokens >= 1


@pytest.mark.parametrize("data", [b"no image", picture("png")[:60], b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_corrupt_image_is_a_400(client: openai.OpenAI, data: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="image"):
        client.chat.completions.create(model=MODEL, messages=turn(data), max_tokens=6)
