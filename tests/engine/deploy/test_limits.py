"""What the service refuses before it costs memory, and the options that say so."""

import json
import tracemalloc

import pytest
from starlette.exceptions import HTTPException

from src.engine.deploy import requests, serving
from tests.engine.deploy.local import classifier
from tests.engine.deploy.served import free_port


@pytest.mark.parametrize("is_object", [False, True])
def test_texts_in_place_of_pixels_are_refused_without_a_wide_array(is_object: bool) -> None:
    texts = ["a" * 10_000, *[""] * 2000]  # 80 MB as an array of texts
    reader = requests.RequestReader(classifier(lambda pixels: []), None, 10**6)
    body = json.dumps({"pixels": texts} if is_object else texts).encode()
    tracemalloc.start()
    try:
        with pytest.raises(HTTPException, match="not pixels: send a PNG or JPEG") as refusal:
            reader._decode(body, "", is_large=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refusal.value.status_code == 422
    assert peak < 10**6


def test_the_token_is_that_of_the_environment_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    port = ("--port", str(free_port()))
    monkeypatch.delenv("SERVE_TOKEN", raising=False)
    assert serving._parse([*port]).token is None
    monkeypatch.setenv("SERVE_TOKEN", "of the environment")
    assert serving._parse([*port]).token == "of the environment"
    assert serving._parse([*port, "--token", "given"]).token == "given"


def test_the_largest_body_that_may_be_asked_for_is_decoded() -> None:
    assert serving.LARGEST_BODY_MB * 1_000_000 == requests.MAX_DECODING_PIXELS
