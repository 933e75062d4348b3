"""Script that renders chat templates, or names their variables, in a separate process: a JSON request a line, an answer a line.

A template is an untrusted program. jinja's sandbox keeps it from files and attributes, but not from building a text of ten
billion characters. ``templates.py`` runs this file as a script, so that neither torch nor hanmo's families are loaded.
"""

import json
import sys
from typing import Any

MEMORY = 512 << 20  # bytes; a template needs a few times the size of the conversation
SECONDS = 2  # of processor time for one conversation
LONGEST = 1 << 24  # characters of a rendered conversation


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The rendered "text" or the "variables" of the template; else the "limit" that it exceeds or its "error"."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        if "conversations" not in request:
            return {"variables": _variables(request["chat_template"])}
        rendered: Any = render_jinja_template(**request)[0]  # a list of one for each conversation
        rendered[0].encode("utf-8")  # a template may output a lone surrogate, which no tokenizer accepts
    except MemoryError:
        return {"limit": "memory"}
    except RecursionError:
        return {"error": "it recurses endlessly"}
    except Exception as error:  # the template's own refusal, or jinja's error
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    text = rendered[0]
    return {"text": text} if len(text) <= LONGEST else {"limit": "memory"}


def _variables(template: str) -> list[str]:
    """The variables that a template takes from outside, without the functions that jinja and transformers provide."""
    from jinja2.meta import find_undeclared_variables
    from transformers.utils import chat_template_utils

    environment = chat_template_utils._compile_jinja_template(template).environment
    return sorted(find_undeclared_variables(environment.parse(template)) - environment.globals.keys())


def _serve() -> None:
    import resource

    import transformers.utils.chat_template_utils  # noqa: F401 (before the limits)

    from hanmo.limits import limit_memory

    limit_memory(MEMORY)
    print("ready", flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    sys.path += [place for place in sys.argv[1:] if place not in sys.path]
    _serve()
