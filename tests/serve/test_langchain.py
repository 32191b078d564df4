"""The server behind LangChain, which takes it for OpenAI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from running import Running
from told import cue, telling

ANSWERS = {
    "rome": 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    "sunny": "It is sunny there.",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with telling(tmp_path_factory.mktemp("told"), ANSWERS) as running:
        yield running


@tool
def weather(city: str) -> str:
    """Tell the weather of a place."""
    return f"{city}: {cue('sunny')}"


@pytest.mark.parametrize("responses", [False, True])
def test_a_model_is_asked_streamed_and_given_tools(told: Running, responses: bool) -> None:
    model = ChatOpenAI(
        model=told.name, base_url=f"{told.url}/v1", api_key="unused", temperature=0, use_responses_api=responses
    )  # type: ignore[arg-type]
    assert model.invoke(cue("sunny")).text == ANSWERS["sunny"]
    assert "".join(chunk.text for chunk in model.stream(cue("sunny"))) == ANSWERS["sunny"]
    bound = model.bind_tools([weather])
    asked = HumanMessage(cue("rome"))
    answer = bound.invoke([asked])
    assert isinstance(answer, AIMessage)
    gathered = None
    for chunk in bound.stream([asked]):
        gathered = chunk if gathered is None else gathered + chunk
    assert isinstance(gathered, AIMessage)
    for message in (answer, gathered):
        (call,) = message.tool_calls
        assert (call["name"], call["args"]) == ("weather", {"city": "Rome"})
        result = ToolMessage(cue("sunny"), tool_call_id=call["id"])
        assert bound.invoke([asked, message, result]).text == ANSWERS["sunny"]
