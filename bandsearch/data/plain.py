"""The plain forms for models without a chat template, as jinja: what trains is what a server can be given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bandsearch.data.shapes import Example, Shape

_BODY = """\
{{- beginning -}}
{%- for message in messages -%}
    {%- set calls = message["tool_calls"] | tojson(ensure_ascii=true) if message["tool_calls"] else "" -%}
    {{- "" if loop.first else between -}}
    {{- openings.get(message["role"], "") -}}
    {%- set text = [message["content"], calls] | select | join("\\n") -%}
    {{- lead if message["role"] == "assistant" and not text.startswith(lead) -}}
    {{- text -}}
    {{- end if message["role"] == "assistant" -}}
{%- endfor -%}
{{- between + openings["assistant"] if add_generation_prompt -}}
"""


@dataclass(frozen=True)
class Style:
    """What stands before a message of each role, and between two messages.

    `lead` stands between the opening of an answer and the answer, and is learned with it: tokenizers join a space to
    the word that follows. A served answer begins with it, and is given back as it came.
    """

    openings: Mapping[str, str]
    between: str
    lead: str = ""

    def __str__(self) -> str:
        """In one line, with line breaks as \\n."""
        question, answer = self.openings["user"] + "{prompt}", self.openings["assistant"] + self.lead + "{completion}"
        return f"plain, {question}{self.between}{answer}".replace("\n", "\\n")

    def chat_template(self, end: str, beginning: str = "") -> str:
        """As a jinja chat template, with `end` behind every answer and `beginning` in front of everything."""
        named = {"beginning": beginning, "openings": dict(self.openings), "between": self.between}
        named |= {"lead": self.lead, "end": end}
        # JSON's strings and objects are jinja's too, but for characters that JSON escapes in two halves.
        head = (f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for name, value in named.items())
        return "".join(head) + _BODY


AS_IT_IS = Style({"user": "", "assistant": ""}, "")
_CONVERSATION = Style({"system": "System: ", "user": "User: ", "assistant": "Assistant:", "tool": "Tool: "}, "\n", " ")
_STYLES = {
    Shape.CHAT: _CONVERSATION,
    Shape.SHAREGPT: _CONVERSATION,
    # The form in which lm-eval asks GSM8K.
    Shape.QUESTION: Style({"user": "Question: ", "assistant": "Answer:"}, "\n", " "),
    Shape.ALPACA: Style({"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}, "\n\n"),
}


def style_of(shape: Shape, examples: Sequence[Example]) -> Style:
    """Prompts and completions are joined as they are where their author left a space or line break between them."""
    if shape in _STYLES:
        return _STYLES[shape]
    if any(len(example.messages) > 2 or example.messages[0].role != "user" for example in examples):
        return _CONVERSATION
    spaced = sum(
        example.messages[0].content[-1].isspace() or example.messages[1].content[0].isspace() for example in examples
    )
    return Style({"user": "", "assistant": ""}, "" if 2 * spaced >= len(examples) else "\n")
