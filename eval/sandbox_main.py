"""Start of the judging server: `python -P -s -S sandbox_main.py`, run by path in an empty environment.

NOT imported by anything. Makes `eval` findable, without anything else beside it shadowing the standard library, and
hands over. -S keeps installed packages away from judged programs; PYTHONHASHSEED=0 makes verdicts repeatable, which is
why it is not -I, which ignores it; -P -s and the empty environment are the rest of -I.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    from eval.sandbox_server import main

    sys.path.pop()
    main()
