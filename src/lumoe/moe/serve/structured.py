"""How requests ask for a form: OpenAI's `response_format`, vLLM's `guided_*` and its newer `structured_outputs`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lumoe.moe.serve.body import Body
from lumoe.moe.serve.constraints import Constraint, constraint_for_schema

Schema = dict[str, Any] | Annotated[bool, Field(strict=True)]
Choices = Annotated[list[Annotated[str, Field(max_length=4096)]], Field(min_length=1, max_length=4096)]
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class JsonSchema(BaseModel):
    """A JSON schema with its name; `strict` or not, answers are held to it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(default="", max_length=256)
    description: str | None = None
    form: Schema | None = Field(default=None, alias="schema")
    strict: Annotated[bool, Field(strict=True)] | None = None


class ResponseFormat(BaseModel):
    """What an answer is to be."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' goes with the type 'json_schema', and only with it")
        return self

    def constraint(self) -> Constraint | None:
        """Return what the answer is held to; None is nothing."""
        if self.type == "text":
            return None
        schema = self.json_schema.form if self.json_schema else None
        if schema is None:
            return constraint_for_schema(ANY_OBJECT, "response_format")
        return constraint_for_schema(schema, "response_format.json_schema.schema")


def parsed(value: Any) -> Any:
    """Return a schema, which may be given as a text.

    Raises:
        ValueError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class StructuredOutputs(BaseModel):
    """One of the forms that vLLM knows."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    form: Schema | None = Field(default=None, alias="json", description="a JSON schema")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: Literal[True] | None = None

    @field_validator("form", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        return parsed(value)


class Structured(Body):
    """What a request may ask of an answer's form; one at most."""

    response_format: ResponseFormat | None = Field(default=None, description="text, any JSON object, or a JSON schema")
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = Field(default=None, description="a JSON schema, as an object or as a text")
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = Field(default=None, description="Lark as llguidance has it, or GBNF")

    @field_validator("guided_json", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        return parsed(value)

    @model_validator(mode="after")
    def _one(self) -> Structured:
        if len(asked := self._asked()) > 1:
            names = " and ".join(f"'{constraint.field}'" for constraint in asked[:2])
            raise ValueError(f"an answer has one form; {names} were given")
        return self

    def constraint(self) -> Constraint | None:
        """Return what the answer is held to; None is nothing."""
        return next(iter(self._asked()), None)

    def _asked(self) -> list[Constraint]:
        found = [self.response_format.constraint() if self.response_format else None]
        newer = self.structured_outputs or StructuredOutputs()
        if newer.json_object:
            found.append(constraint_for_schema(ANY_OBJECT, "structured_outputs.json_object"))
        given: list[tuple[str, Any, str | None, list[str] | None, str | None]] = [
            ("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar),
            ("structured_outputs.", newer.form, newer.regex, newer.choice, newer.grammar),
        ]
        for prefix, schema, regex, choice, grammar in given:
            if schema is not None:
                found.append(constraint_for_schema(schema, f"{prefix}json"))
            if regex is not None:
                found.append(Constraint("regex", regex, f"{prefix}regex"))
            if choice is not None:
                found.append(Constraint("choice", json.dumps(choice, ensure_ascii=False), f"{prefix}choice"))
            if grammar is not None:
                found.append(Constraint("grammar", grammar, f"{prefix}grammar"))
        return [constraint for constraint in found if constraint is not None]
