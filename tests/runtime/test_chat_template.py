"""Chat templates: the common ones render as their authors mean; a hostile one is refused, in time."""

from __future__ import annotations

import threading
import time

import pytest
from llmc.errors import RequestError
from llmc.runtime import chat_template
from llmc.runtime.chat_template import render_chat

MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_a_common_template():
    assert render_chat(CHATML, MESSAGES[:1], {}) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert render_chat(CHATML, MESSAGES, {}, add_generation_prompt=False).endswith("Hi<|im_end|>\n")


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}[{{ m.content | trim }}]{% endfor %}",
        "{{ messages | tojson }}",
        "{%- set ns = namespace(x='') %}\n  {%- for m in messages %}\n    {%- set ns.x = ns.x + m.role %}\n  {%- endfor %}\n{{ ns.x }}",
    ],
)
def test_the_text_is_that_of_transformers(template):
    """The reference is the function that the models' authors tested their templates with."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=True, bos_token="<s>")
    assert render_chat(template, MESSAGES, {"bos_token": "<s>"}) == expected


def test_content_is_never_run_as_a_template():
    text = "{{ 7 * 7 }}{% raise %}"
    assert text in render_chat(CHATML, [{"role": "user", "content": text}], {})


def test_a_templates_own_refusal_reaches_the_user():
    with pytest.raises(RequestError, match="only user"):
        render_chat("{{ raise_exception('only user') }}", MESSAGES, {})


def test_no_template():
    with pytest.raises(RequestError, match="no chat template"):
        render_chat(None, MESSAGES, {})


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ strftime_now.__globals__ }}{{ strftime_now.__globals__['threading'] }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self._TemplateReference__context.environment.globals }}{{ self.__init__.__globals__['x'] }}",
    "{{ '%s'.format.__self__.__class__.__mro__ }}",
    "{{ ('{0.__class__.__mro__}').format('') }}{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ messages.append({'role': 'x'}) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update({'content': 'x'}) }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_escapes_give_nothing_and_change_nothing(template):
    messages = [dict(m) for m in MESSAGES]
    try:
        text = render_chat(template, messages, {})
    except RequestError:
        text = ""
    assert "class '" not in text and "root:" not in text and "built-in" not in text and "<module" not in text
    assert messages == MESSAGES


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ 1 % 0 }}",
        "{{ '{}{}'.format(1) }}",
        "{{ 'a' + 1 }}",
        "{{ 'abc'.index('z') }}",
        "{{ messages | no_such_filter }}",
        "{% include 'x' %}",
        "{{ range(10 ** 9) | list }}",
        "{{ messages['x'].y }}",
        "{{ (10 ** 5000) | string }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_broken_template_is_the_requests_error(template):
    """Whatever a template raises, the caller sees a RequestError: it becomes a 400, not a crash."""
    with pytest.raises(RequestError):
        render_chat(template, MESSAGES, {})


def test_a_long_text_is_refused(monkeypatch):
    monkeypatch.setattr(chat_template, "SIZE_LIMIT", 1000)
    with pytest.raises(RequestError, match="too long"):
        render_chat("{% for i in range(2000) %}x{% endfor %}", MESSAGES, {})


LOOPS = {
    "that prints": "{% for a in range(100000) %}{% for b in range(400) %}{{ '' }}{% endfor %}{% endfor %}",
    "that is silent": "{% for a in range(100000) %}{% for b in range(400) %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("kind", LOOPS)
def test_an_endless_template_hits_the_time_limit_and_stops_running(kind, monkeypatch):
    """40 million rounds stand for an endless loop: the request is refused in time, and no thread keeps a core busy."""
    monkeypatch.setattr(chat_template, "TIME_LIMIT_S", 0.2)
    before, start = set(threading.enumerate()), time.monotonic()
    with pytest.raises(RequestError, match="takes more than"):
        render_chat(LOOPS[kind], MESSAGES, {})
    assert time.monotonic() - start < 3
    runaways = [t for t in threading.enumerate() if t not in before]
    for thread in runaways:
        thread.join(0.3)
    assert not any(t.is_alive() for t in runaways), "the template still runs after it was given up"


def test_one_expression_cannot_hold_the_interpreter(monkeypatch):
    """A power of large numbers runs in C: no other thread gets on, and the time limit cannot act."""
    monkeypatch.setattr(chat_template, "TIME_LIMIT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(RequestError):
        render_chat("{{ (7 ** 8000000) % 10 }}", MESSAGES, {})
    assert time.monotonic() - start < 1
