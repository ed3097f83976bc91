"""Tokens of a prompt, counted without an answer; and the stop text that ended one. On the real model, and simulated."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import Delta, End, InferRequest, Tool
from llmlb.node.engine.llama_cpp import LlamaCppEngine
from llmlb.node.engine.simulated import Fault, FaultScript, SimulatedEngine, SimulatedSpec
from llmlb.node.engine.simulated_script import token_text
from llmlb.router.dispatch import Dispatcher
from llmlb.router.fleet import Fleet
from tests.conftest import MakeBus
from tests.support.engine import Driver, chat, smollm2_options
from tests.support.simulated import SimulatedNode

QUESTION = "Name the planets of the solar system."
TOOL = Tool(name="add", description="Adds two numbers.", parameters='{"type":"object"}')


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    engine = LlamaCppEngine(smollm2_options(slots=2, context=256))
    yield Driver(engine, tested=False)
    engine.close()


def counted(request: InferRequest) -> InferRequest:
    return request.model_copy(update={"count_only": True})


def test_the_count_is_what_the_answer_says(driver: Driver) -> None:
    for request in (chat(QUESTION, max_tokens=1), chat(QUESTION, system="Be brief.", max_tokens=1, tools=(TOOL,))):
        answered, count = driver.one(request), driver.one(counted(request))
        assert answered.usage is not None
        assert count.usage is not None
        assert count.usage.prompt_tokens == answered.usage.prompt_tokens
        assert count.usage.completion_tokens == 0
        assert (count.text, count.tokens, count.reason) == ("", [], "stop")


def test_a_prompt_that_does_not_fit_is_counted_too(driver: Driver) -> None:
    count = driver.one(counted(chat("word " * 1000)))
    assert count.usage is not None
    assert count.usage.prompt_tokens > 1000


def test_a_count_needs_no_slot(driver: Driver) -> None:
    busy = [driver.submit(chat(QUESTION, max_tokens=30)) for _ in range(4)]
    driver.step()
    count = driver.submit(counted(chat(QUESTION)))
    driver.step()
    assert driver.heard(count).usage is not None, "in the next step, though every slot is taken"
    assert not any(driver.heard(handle).over for handle in busy)
    driver.until(lambda: all(driver.heard(handle).over for handle in busy))


def test_a_count_can_be_cancelled(driver: Driver) -> None:
    count = driver.submit(counted(chat(QUESTION)))
    assert driver.engine.cancel(count)
    assert not driver.engine.cancel(count)
    driver.step()
    assert not driver.heard(count).over


def test_a_count_of_what_can_not_be_run_fails_as_the_answer_does(driver: Driver) -> None:
    with pytest.raises(InvalidRequest):
        driver.submit(counted(chat(QUESTION, template_kwargs="[]")))


def test_the_end_says_which_stop_text_it_met(driver: Driver) -> None:
    whole = driver.one(chat(QUESTION, max_tokens=24))
    stop = whole.text[10:16]
    met = driver.one(chat(QUESTION, max_tokens=24, stop=("never there", stop)))
    assert (met.reason, met.stop_text) == ("stop", stop)
    assert whole.stop_text is None


def test_the_simulated_engine_counts_and_says_its_stop_text() -> None:
    driver = Driver(SimulatedEngine(SimulatedSpec(tokens_per_s=1e9, context_length=4), FaultScript([Fault("crash")])))
    count = driver.one(counted(chat("one two three four five six")))
    assert count.usage is not None
    assert (count.usage.prompt_tokens, count.usage.completion_tokens) == (7, 0), "and meets no fault"
    engine = SimulatedEngine(SimulatedSpec(tokens_per_s=1e9), FaultScript())
    driver = Driver(engine)
    whole = driver.one(chat("hi"))
    stop = token_text(whole.tokens[3])
    assert driver.one(chat("hi", stop=(stop,))).stop_text == stop


async def test_a_count_goes_over_the_bus_and_ends_there_too(make_bus: MakeBus) -> None:
    bus, model = await make_bus(), f"simulated/{uuid.uuid4().hex[:12]}"
    fleet = Fleet(bus)
    dispatcher = Dispatcher(bus, fleet)
    node = SimulatedNode(await make_bus(), models=[model])
    await fleet.start()
    await dispatcher.start()
    try:
        await node.start()
        async with asyncio.timeout(10):
            while all(known.name != model for known in fleet.list_models()):
                await asyncio.sleep(0.01)
            request = counted(chat("one two three")).model_copy(update={"model": model})
            events = [event async for event in dispatcher.stream(request)]
        end = events[-1]
        assert isinstance(end, End)
        assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (4, 0)
        assert not any(isinstance(event, Delta) for event in events)
        assert node.running == 0
    finally:
        await node.kill()
        await dispatcher.close()
        await fleet.close()
