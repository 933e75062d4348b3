"""The program of a process that judges replies for another one; see ``process.py``.

Standard input has a JSON object a line: first the function's name and options, then prompts, replies and records; every line
is answered by one. What the function prints goes to standard error.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    sys.path += sys.argv[1:]
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        from hanmo.errors import HanmoError
        from hanmo.verify.functions import JudgeError, judged, load_judge

        def answer(**content: Any) -> None:
            answers.write(json.dumps(content) + "\n")
            answers.flush()

        requests = os.fdopen(os.dup(0), encoding="utf-8")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the function may not read the requests
        first = json.loads(requests.readline())
        try:
            judge = load_judge(first["name"], first["options"])
        except HanmoError as error:
            answer(refused=str(error))
            return
        answer(ready=True)
        for line in requests:
            try:
                answer(scores=judged(judge, **json.loads(line)))
            except JudgeError as error:
                answer(problem=error.problem, place=error.place)


if __name__ == "__main__":
    main()
