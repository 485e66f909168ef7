"""Writes chat_vectors.json: what the transformers library renders with chat templates.

Usage: python3 make_chat_vectors.py  (pip install transformers jinja2; made with 5.23.0 and 3.1.6)

chat_templates/ holds templates as their tokenizers' configurations publish them:
  mistral_v1           Mistral-7B-Instruct-v0.1      chatml            OpenHermes-2.5-Mistral-7B
  mistral_v1_system    Mistral-7B-Instruct-v0.2      chatml_smollm     SmolLM-Instruct
  mistral_v3           Mistral-7B-Instruct-v0.3      chatml_qwen2_5    Qwen2.5-Instruct
  llama2               Llama-2-chat                  gemma, gemma3     gemma-2-it, gemma-3-it
  llama3, llama3_2     Llama-3 and -3.2-Instruct     zephyr            zephyr-7b-beta
  phi3_*, phi4*        Phi-3 and Phi-4               openchat          openchat-3.5
  deepseek_coder       deepseek-coder-instruct
SNIPPETS are small templates, one for each part of the language.
"""

import datetime
import json
import pathlib

import transformers.utils.chat_template_utils as chat

HERE = pathlib.Path(__file__).parent
NOW = 1753272000  # 23 July 2025, 12:00 UTC


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)


chat.datetime = Clock


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


S, U, A = "system", "user", "assistant"
CONVERSATIONS = {
    "one turn": messages((U, "Hello, how are you?")),
    "system": messages((S, "You are a helpful assistant."), (U, "Hello")),
    "several turns": messages((U, "Hi"), (A, "Hi there"), (U, "Who are you?"),
                              (A, "   I am an assistant   "), (U, "Another question")),
    "system and turns": messages((S, " Be brief.\n"), (U, "Hi"), (A, "Hi there\n\n"), (U, "Bye ")),
    "ends with the assistant": messages((U, "Hi"), (A, "Hi there")),
    "unicode": messages((S, "Antworte höflich — “bitte” 日本語"),
                        (U, "\u3000Καλημέρα 👩‍👩‍👧 é\u0301\u00a0"), (A, "🇫🇷\u2028\u0085"), (U, "ß ﬁ")),
    "empty content": messages((U, ""), (A, ""), (U, " \n ")),
    "empty system": messages((S, ""), (U, "Hi")),
    "lines and quotes": messages((U, "a\r\nb\tc\\n \"quoted\" 'single' {{ x }} {% if %} {# #}\n")),
    "special tokens": messages((U, "</s><s>[INST] <|im_end|>\n<|im_start|>system\n<<SYS>><end_of_turn>"),
                               (A, "<|eot_id|>"), (U, "<|end|><|user|>[/INST]")),
    "assistant first": messages((A, "Welcome"), (U, "Hi")),
    "user twice": messages((U, "Hi"), (U, "Are you there?")),
    "system late": messages((U, "Hi"), (S, "Be brief"), (U, "Hi")),
    "unknown role": messages((U, "Hi"), ("wizard", "Abracadabra"), (U, "What?")),
    "tool result": messages((U, "Hi"), (A, "Let me see"), ("tool", "{\"t\": 3}"), (A, "3")),
    "nothing": [],
}

SNIPPETS = [
    # white space
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a {%- if true -%} b {%- endif -%} c",
    "  {%+ if true %}x{% endif +%}\n y", "a\n\t {# comment #}\nb", "a {#- c -#} b", "{{ 1 }}\n{{- 2 -}}\n 3\n\n",
    "x{% if true %}\n\ny{% endif %}", "{% set x = 1 %}\n{{ x }}\r\nb\r\n", "\n\n  {{- 'a' }}  \n  {%- set b = 1 %}  \n",
    "a\u00a0{%- if true %}\u2003\n{%- endif %}b", "{% if true %}a{% endif %}  {% if true %}b{% endif %}\n  {% if true %}\n{% endif %}",
    "", "\n", "{", "{ {% if true %}}{% endif %} }} %} #}", "{{ '}}' }}{{ \"%}\" }}", "{{ {'a': {'b': 1}}['a']['b'] }}",
    # literals
    r"{{ 'a\n\t\\\'\"\x41\u00e9\U0001F600\101\q' }}", "{{ 'a' 'b' \"c\" }}", "{{ 1_000 }} {{ 1.5 }} {{ 2e3 }} {{ 1e-7 }} {{ 1e16 }} {{ 1e22 }} {{ 3.0 }}",
    "{{ true }} {{ True }} {{ none }} {{ None }} {{ false }}", "{{ [1, 'a', \"it's\", none, true, 1.0, []] }}", "{{ {'a': 1, 'b': ['\\n', 'é']} }}",
    "{{ [] }} {{ {} }} {{ [1,] }} {{ {'a': 1,} }}", "{{ (1) }} {{ (1, 2)[1] }} {{ ('a', 'b') | join('-') }}",
    # operators
    "{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}",
    "{{ -3 + +4 }} {{ - 3 | abs }} {{ 2 * 'ab' }} {{ 'ab' * 0 }} {{ 'ab' * -1 }} {{ true + 1 }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1] ~ x }}", "{{ 'a' + 'b' + 'c' }} {{ [1] + [2] }}", "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }}",
    "{{ 1 in [1] }} {{ 'a' not in 'cat' }} {{ 'k' in {'k': 1} }} {{ not 1 in [2] }} {{ 1 in [] or 2 }}", "{{ '' or 'x' }} {{ 'a' and 'b' }} {{ none or 0 }} {{ not none }} {{ not [] }}",
    "{{ 'y' if 1 else 'n' }} {{ 'y' if 0 }}| {{ 'a' if 0 else 'b' if 0 else 'c' }}", "{{ 'a' if x is defined else 'b' }}{{ 'a' if not x is defined }}",
    "{{ [1,2] == [1,2] }} {{ {'a': 1} == {'a': 1.0} }} {{ 'a' == 1 }} {{ none == none }} {{ x == y }} {{ [1] != [2] }}",
    "{{ 1 + 1 ~ 2 }}", "{{ 2 ~ 3 * 2 }} {{ 'a' ~ 'b' == 'ab' }} {{ not 'a' == 'b' }}", "{{ 2 >= 2 }} {{ 2 <= 1 }} {{ 'b' > 'a' }} {{ 1.5 > 1 }}",
    # subscripts
    "{{ 'héllo'[1] }} {{ 'abc'[-1] }} {{ 'abc'[5] }}| {{ [1,2,3][-2] }} {{ [1][3] }}|", "{{ 'héllo'[1:3] }} {{ 'abc'[:-1] }} {{ 'abc'[::-1] }} {{ 'abcdef'[1::2] }} {{ 'abc'[5:] }}| {{ 'abc'[-2:] }}",
    "{{ [1,2,3][1:] }} {{ [1,2,3][::-1] }} {{ [1,2,3][5:1:-1] }} {{ [1,2,3][-9:9] }} {{ [1,2,3][2:0:-1] }}", "{{ 'abcd'[::-2] }} {{ 'abcd'[3:0:-1] }} {{ 'abcd'[none:2] }}",
    "{{ messages[0].role }} {{ messages[0]['content'] }} {{ messages[0].nothing }}| {{ messages.0.role }}", "{{ {'items': 3}['items'] }} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 2) }}",
    "{{ none.x }}| {{ (1).y }}| {{ 'a'.z }}| {{ none['x'] }}|", "{{ messages[-1].content[0] }}",
    # statements
    "{% for i in [1,2,3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}",
    "{% for i in 'abc' %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }}{{ loop.cycle('x', 'y') }} {% endfor %}", "{% for i in [] %}a{% else %}empty{% endfor %} {% for i in x %}a{% else %}undefined{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for k in {'a': 1} %}{{ k }}{% endfor %}", "{% for i in range(5) if i is odd %}{{ i }}{{ loop.last }}{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in [1,2] %}{% for j in [1,2] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1,2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}", "{% set ns = namespace(a=1, b='x') %}{% for i in [1,2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c }}",
    "{% if x %}a{% elif messages %}b{% else %}c{% endif %}{% if x is defined %}d{% endif %}", "{% if true %}{% set x = 2 %}{% endif %}{{ x }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [3, 4] %}{{ a }}{{ b }}",
    "{% set x %} a{{ 1 }} {% endset %}[{{ x }}]", "{% set x | upper | trim %} ab {% endset %}[{{ x }}]", "{% set x = 'a' if false else 'b' %}{{ x }}", "{% for a in [1, 2] + [3] %}{{ a }}{% endfor %}", "{% for a in 1, 2 %}{{ a }}{% endfor %}",
    "{% macro m(a, b='z') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m() }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(4) }}", "{% set g = 7 %}{% macro m() %}{{ g }}{{ messages | length }}{% endmacro %}{{ m() | trim }}",
    "{% generation %}a{% endgeneration %}b", "{% for m in messages %}{{ m.role }}{{ ', ' if not loop.last }}{% endfor %}", "{% for i in range(2, 8, 3) %}{{ i }} {% endfor %}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}{% for i in range(0) %}x{% endfor %}",
    "{% for x in [[1, 2], [3, 4]] %}{% for y in x %}{{ y }}{% endfor %}{% endfor %}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %}", "{% for i in [3,2] %}{{ i }}{% else %}x{% endfor %}{{ i }}",
    "{% for i in [1] %}{% break %}{% else %}e{% endfor %}{% for i in [1] %}{% continue %}{% else %}e{% endfor %}{% for i in [1,2] %}{% if i == 2 %}{% break %}{% endif %}{% else %}e{% endfor %}",
    "{{ (1, 2) }} {{ (1,) }} {{ () }} {{ {'a': 1}.items() | list }} {{ (1, 2)[:1] }} {{ (1, 2) == [1, 2] }} {{ 1, 2 }}", "{{ true[1:] }}|{{ none | select | list }}|{{ false | map('upper') | list }}",
    # filters
    "{{ ' a ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ '\u3000a\u2003' | trim }}|{{ none | trim }}|{{ x | trim }}|{{ 5 | trim }}", "{{ 'aB c' | upper }} {{ 'aB' | lower }} {{ 'hELLO wORLD' | capitalize }} {{ \"it's a-b (c) d_e\" | title }}",
    "{{ 'héé' | length }} {{ [1,2] | count }} {{ {'a': 1} | length }} {{ x | length }}", "{{ [1,2] | first }}{{ [1,2] | last }}{{ [] | first }}|{{ 'ab' | last }}", "{{ [1,'a',none] | join }} {{ [1,2] | join(', ') }} {{ messages | join('|', attribute='role') }} {{ 'abc' | join('-') }}",
    "{{ 'aXbXc' | replace('X', '--') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'ab' | replace('', '-') }} {{ 5 | replace('5', 'x') }}", "{{ x | default('d') }} {{ '' | default('d') }}| {{ '' | default('d', true) }} {{ none | d('e') }} {{ x | d }}|",
    "{{ {'a': [1, 2.5, none, true, 'é\"\\n</']} | tojson }} {{ 'x' | tojson }} {{ [] | tojson }} {{ {} | tojson(indent=2) }}", "{{ {'b': [1, {'c': 2}], 'a': 'é'} | tojson(indent=2) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ 'é😀' | tojson(ensure_ascii=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }}",
    "{{ messages[0] | tojson }} {{ '\\x01\\x7f\\b\\f' | tojson }}", "{{ 5 | string + '1' }} {{ '5' | int + 1 }} {{ ' 7 ' | int }} {{ 'x' | int }} {{ '3.7' | int }} {{ 3.9 | int }} {{ '2.5' | float }} {{ 'x' | float }} {{ 'x' | int(9) }} {{ 'x' | int(default=8) }}",
    "{{ 'abc' | list }} {{ 'abc' | reverse }} {{ [1,2] | reverse | list }} {{ {'a': 1} | list }}", "{{ messages | map(attribute='role') | list }} {{ ['a', 'b'] | map('upper') | join }} {{ messages | map(attribute='zip', default='none') | list }}",
    "{{ [1,2,3] | select('odd') | list }} {{ [1,2,3] | reject('odd') | list }} {{ [0,1] | select | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', '==', 'user') | map(attribute='role') | list }} {{ messages | selectattr('tools') | list }}",
    "{{ messages | selectattr('role', 'in', ['user', 'x']) | map(attribute='content') | join(' ') }}", "{{ {'a': 1} | items | list | length }} {{ 'a' | safe }} {{ 'a\nb\n\nc' | indent }}| {{ 'a\nb' | indent(2, true) }} {{ 'a\n' | indent(1) }}| {{ 'a\n\nb' | indent('>', blank=true) }}",
    "{{ ('a' ~ 'b') | upper }} {{ 'a' ~ 'b' | upper }} {{ -1 | abs }} {{ 'a' + 'b' | upper }}",
    # tests
    "{{ x is defined }} {{ messages is defined }} {{ x is undefined }} {{ none is none }} {{ 'a' is string }} {{ 1 is number }} {{ 1.5 is integer }} {{ 1 is integer }} {{ 1.0 is float }} {{ true is boolean }} {{ true is integer }}",
    "{{ {} is mapping }} {{ [] is sequence }} {{ 'a' is sequence }} {{ 'a' is iterable }} {{ 1 is iterable }} {{ none is iterable }} {{ {} is iterable }} {{ range is callable }} {{ true is true }} {{ 1 is true }} {{ false is false }}",
    "{{ 4 is divisibleby 2 }} {{ 4 is divisibleby(3) }} {{ 3 is odd }} {{ 3 is even }} {{ 1 is eq 1 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 1 is ge(2) }} {{ 1 is in [1] }} {{ 1 is not in [1] }} {{ 'a' is equalto 'a' }} {{ 'ab' is lower }} {{ 'AB' is upper }} {{ '1' is lower }}",
    "{{ x is not defined and 1 is number }} {{ 1 is number or x }} {{ 'a' is string and messages is iterable }} {{ (x.y is defined) if x is defined else 'no' }} {{ messages[0].tool_calls is defined }} {{ not x is defined }}",
    "{{ none is sameas none }} {{ true is sameas 1 }} {{ 'trim' is filter }} {{ 'odd' is test }}",
    # methods
    "{{ ' a '.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'xyax'.strip('xy') }}|{{ 'a\\n'.rstrip('\\n') }}|", "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a  b c'.split(none, 1) }}",
    "{{ 'a\nb\r\nc\n'.splitlines() }} {{ 'a\nb'.splitlines(true) }}", "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith(('x', 'a')) }}", "{{ 'aB'.upper() }} {{ 'aB'.lower() }} {{ \"it's a-b\".title() }} {{ 'aB cD'.capitalize() }}",
    "{{ 'abcabc'.find('c') }} {{ 'éc'.find('c') }} {{ 'abc'.find('x') }} {{ 'abcabc'.rfind('c') }} {{ 'aaa'.count('a') }} {{ 'a'.count('') }} {{ 'aaa'.rsplit('aa', 1) }} {{ 'aaa'.rfind('aa') }}", "{{ '-'.join(['a', 'b']) }} {{ 'a.b'.replace('.', '!') }} {{ 'aaa'.replace('a', 'b', 1) }}",
    "{{ '12'.isdigit() }} {{ 'a1'.isalpha() }} {{ ''.isdigit() }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'a.txt'.removesuffix('.txt') }}", "{{ {'a': 1, 'b': 2}.keys() | list }} {{ {'a': 1}.values() | list }} {{ {'a': 1}.items() | list | length }}", "{{ dict(a=1, b='x') }} {{ 'x'.split('x')[0] }}|",
    "{{ messages[0]['content'].split(' ')[-1].strip() }} {{ messages[0].content.startswith('H') }} {{ ('a' in messages[0].content) }}",
    # functions
    "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%A %B %j %H:%M') }}", "{% set ns = namespace(x=0) %}{% set ns.y = [ns.x] %}{{ ns.y }}", "{{ bos_token }}{{ eos_token }}{{ pad_token }}|{{ tools }}{{ documents }}{{ add_generation_prompt }}",
    # what is wrong
    "{{ x.y }}", "{{ x + 1 }}", "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ none + 'a' }}", "{{ x() }}", "{{ 'a' | nosuchfilter }}", "{{ 1 is nosuchtest }}", "{{ 1 / 0 }}", "{{ 1 < 'a' }}", "{% for i in 5 %}{% endfor %}", "{% for i in none %}{% endfor %}", "{{ raise_exception('no') }}",
    "{% if %}{% endif %}", "{% if true %}", "{% endif %}", "{{ 1", "{{ }}", "{{ 'a }}", "{% nosuchtag %}", "{{ (1 }}", "{{ [1 }}", "{{ 1 + }}", "{{ a b }}", "{% set x %}", "{% for x in %}{% endfor %}", "{% for 1 in [1] %}{% endfor %}", "{# open", "{% macro m( %}{% endmacro %}",
    "{{ 'a'[::0] }}", "{{ x | join(1, 2, 3, 4) }}", "{{ m(a=1, 2) }}", "{% break %}", "{{ 1 in 5 }}", "{{ 1 in 'a' }}", "{% set x.y = 1 %}", "{{ [1, 2].append(3) }}", "{{ x[0] }}", "{% set true = 1 %}", "{{ -'a' }}", "{{ messages[0].content() }}", "{% set a, b = [1] %}", "{{ range(200000) }}", "{{ x | tojson }}",
]
SNIPPET_MESSAGES = messages((U, "Hello wörld"), (A, " Hi <s> "), (U, "Bye"))


def render(template, conversation, generate):
    try:
        rendered, _ = chat.render_jinja_template(
            conversations=[conversation], chat_template=template, add_generation_prompt=generate,
            bos_token="<s>", eos_token="</s>")
        return {"text": rendered[0]}
    except Exception as error:  # of Jinja, and Python's own from what a template does
        return {"error": str(error)}


def main():
    families = {}
    for path in sorted((HERE / "chat_templates").glob("*.jinja")):
        template = path.read_text()
        families[path.stem] = [
            {"conversation": name, "generate": generate, **render(template, turns, generate)}
            for name, turns in CONVERSATIONS.items() for generate in (False, True)]
    vectors = {
        "now": NOW,
        "conversations": CONVERSATIONS,
        "families": families,
        "snippet_messages": SNIPPET_MESSAGES,
        "snippets": [{"template": snippet, **render(snippet, SNIPPET_MESSAGES, True)}
                     for snippet in SNIPPETS],
    }
    text = json.dumps(vectors, ensure_ascii=False, indent=1)
    (HERE / "chat_vectors.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
