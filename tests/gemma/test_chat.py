"""Chat templates: whose is taken, what they may do, and which tokens the model says."""

import json
from pathlib import Path

import pytest

import gemma
from gemma.tokenizer import Tokenizer
from gemma.tokenizer.settings import Settings

TINY = Path(gemma.__file__).parent / "tiny"
CHAT = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Ho.\n"}]
UPPER = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }};{% endfor %}{{ '>' if add_generation_prompt }}"


def with_template(template):
    return Tokenizer((TINY / "tokenizer.model").read_bytes(), Settings(templates={"default": template}))


def said(tokenizer, messages, **more):
    return tokenizer.decode(tokenizer.chat(messages, **more))


def test_the_models_own_template_goes_before_gemmas(tiny):
    gemmas = "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHo.<end_of_turn>\n"
    assert said(tiny.tokenizer, CHAT) == gemmas
    assert said(tiny.tokenizer, CHAT, template=UPPER) == "USER:  Hi ;ASSISTANT: Ho.\n;"
    assert said(with_template(UPPER), CHAT, add_generation_prompt=True) == "USER:  Hi ;ASSISTANT: Ho.\n;>"
    assert said(with_template("{{ who }}{{ tools | tojson }}"), CHAT, who="I", tools=[{"a": "é<"}]) == 'I[{"a": "é<"}]'


@pytest.mark.parametrize("where", ["config", "named", "file", "further"])
def test_where_templates_stand(where, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((TINY / "tokenizer.model").read_bytes())
    config = {"config": UPPER, "named": [{"name": "default", "template": UPPER}], "file": "another"}.get(where)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": config} if config else {}))
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text(UPPER)
    if where == "further":
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "loud.jinja").write_text(UPPER)
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.model")
    name = "loud" if where == "further" else None
    assert said(tokenizer, CHAT[:1], template=name) == "USER:  Hi ;"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ messages | attr('__class__') }}{{ (messages | attr('__class__')).mro() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% include 'config.json' %}",
        "{{ open('/etc/passwd').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{% if %}",
    ],
)
def test_a_template_that_does_more_than_arrange_messages_is_refused(template):
    with pytest.raises(ValueError, match=r"the chat template (does more|cannot arrange)"):
        with_template(template).chat(CHAT)


def test_templates_see_plain_values_alone(tiny):
    class Secret:
        key = "secret"

    messages = [{"role": "user", "content": "a", "image": Secret()}]
    assert said(tiny.tokenizer, messages, template="{{ messages[0].image.key }}|{{ messages[0].image }}") == "|None"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "a chat is a list of messages"),
        ("Hi", "a chat is a list of messages"),
        (["Hi"], "a message is a dict"),
        ([{"role": "assistant", "content": "a"}], "turn 1 is of 'model', expected 'user'"),
        ([{"role": "system", "content": "a"}], "a chat needs a user's message"),
    ],
)
def test_what_is_no_chat_is_refused(tiny, messages, message):
    with pytest.raises(ValueError, match=message):
        tiny.tokenizer.chat(messages)


def test_a_templates_own_complaint_is_told():
    with pytest.raises(ValueError, match=r"^System role not supported$"):
        with_template("{{ raise_exception('System role not supported') }}").chat(CHAT)


def test_what_the_model_says_by_another_template():
    tokenizer = with_template("{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}<end_of_turn>{% endfor %}")
    ids, model = tokenizer.chat_turns([*CHAT, CHAT[0], {"role": "assistant", "content": "  No <end_of_turn>ho ho  "}])
    assert tokenizer.decode([i for i, one in zip(ids, model, strict=True) if one]) == "Ho.No <end_of_turn>ho ho"
    assert ids.count(6) == 4  # the template's; not the one that the message spells out
    apart = with_template("{% for m in messages %}{{ m.content.split('.')[-1] }}{% endfor %}")
    with pytest.raises(ValueError, match="takes what the model says apart"):
        apart.chat_turns(CHAT)


def test_generation_blocks_change_nothing(tiny):
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert said(tiny.tokenizer, CHAT, template=template) == " Hi Ho.\n"
