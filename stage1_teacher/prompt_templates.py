"""What the teacher is asked, word for word, and where a base model's answer ends. Short, and ours.

Not for reading tasks and seeds (stage1_teacher/prompt_sets.py) nor for reading answers (stage1_teacher/answers.py).
Changing a byte here changes the prompts' hash, so a folder of answers can only be gone on with by the code that began it.
"""

from __future__ import annotations

from shared.tasks import Task

WRAPPED = "### Instruction:\n{request}\n\n### Response:\n"
"""How a request stands in the corpus, and how a base model is asked."""

CODE_REQUESTS: dict[str, str] = {
    "explain": "Explain this Python code to a programmer who sees it for the first time: what it does, how, and what to "
    "watch out for.",
    "document": "Add docstrings and comments to this Python code and change nothing else. Answer with the whole code in "
    "one Python block.",
    "write_tests": "Write tests for this Python code: plain asserts in functions named test_*. Answer with the tests "
    "alone in one Python block.",
    "refactor": "Rewrite this Python code so that it is simpler and clearer. It must do the same, under the same public "
    "names. Answer with the whole code in one Python block.",
}

SECTIONS = ("reasoning", "code", "explanation", "tests")
"""Of an answer in instruction format, in this order; each is headed by `## Name`."""

_SECTIONS_WANTED = (
    "Answer in four sections with exactly these headings:\n"
    "## Reasoning\nhow you get to the solution\n"
    "## Code\none Python block\n"
    "## Explanation\nwhat the code does and why\n"
    "## Tests\none Python block of asserts"
)

# Where a base model is through with its answer and starts something else. An endpoint gets the first four, which is as many
# as OpenAI takes; selection cuts at all of them.
WHOLE_PROGRAM_ENDS = ("\nassert", '\n"""', "\nprint", "\nif ", "\nclass ", "\n```", "\n<|")
FUNCTION_BODY_ENDS = ("\ndef ", "\nclass ", "\nprint", "\nif ", "\n#", "\n@", "\n```", "\nassert")
RESPONSE_ENDS = ("\n### Instruction", "\n### Response")


def fenced(code: str) -> str:
    """`code` as a Markdown block, inside a longer fence where the code holds one itself."""
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}python\n{code.rstrip()}\n{fence}"


def code_request(task: str, code: str) -> str:
    """One of CODE_REQUESTS about `code`."""
    return f"{CODE_REQUESTS[task]}\n\n{fenced(code)}"


def instruction_request(instruction: str, more: str) -> str:
    """An instruction, with its input if it has one, to be answered in SECTIONS."""
    parts = [instruction.strip(), more.strip(), _SECTIONS_WANTED]
    return "\n\n".join(part for part in parts if part)


def task_request(task: Task) -> str:
    """A programming task for a model that follows instructions."""
    if task.kind == "humaneval":
        wanted = "Complete this Python function. Answer with the whole function in one Python block."
        return f"{wanted}\n\n{fenced(task.prompt)}"
    tests = "\n".join(task.test_list)
    return f"{task.text}\nAnswer with one Python block. Your code must pass these tests:\n\n{fenced(tests)}"
