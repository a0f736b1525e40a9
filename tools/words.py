"""Words that the project does not use, and what to write instead: ``python tools/words.py [FILE OR FOLDER ...]``.

It reads names in Python and yaml, docstrings, comments, messages, test names, Markdown and the cells of notebooks, of
the whole project without arguments. It prints ``file:line: word -> suggestion``, and exits with 1 when there is one.

Text in backticks is code and is not read as prose; strings of tests are data. A name is checked where it is bound, part
by part: ``found_rows`` counts as ``found``.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".py", ".yaml", ".yml", ".md", ".ipynb")


@dataclass(frozen=True)
class Word:
    """An entry of the deny list.

    Attributes:
        instead: what to write.
        name: parts of identifiers that are refused, as a pattern; empty: none.
        prose: words of sentences that are refused, as a pattern; empty: none.
        allow: names (whole) or phrases (with the word in it) that are right, as a pattern.
        allow_in: files that the word is right in, as patterns of their paths.
    """

    instead: str
    name: str = ""
    prose: str = ""
    allow: str = r"(?!)"
    allow_in: tuple[str, ...] = ()


#: Files about gold answers and their extraction, and about judges, optimisers and servers that answer.
_ANSWERS_ARE_THE_SUBJECT = (
    "rlhf_lightning/rewards/answers.py",
    "rlhf_lightning/rewards/matching.py",
    "rlhf_lightning/rewards/equivalence.py",
    "rlhf_lightning/rewards/majority.py",
    "rlhf_lightning/rewards/questions.py",
    "rlhf_lightning/rewards/verifiers.py",
    "rlhf_lightning/rewards/graders/*",
    "rlhf_lightning/rewards/asking.py",
    "rlhf_lightning/rewards/llm_judge.py",
    "rlhf_lightning/prompting/*",
    "rlhf_lightning/rollout/completions.py",
    "rlhf_lightning/rollout/endpoint.py",
    "rlhf_lightning/rollout/openai.py",
    "docs/graders.md",
    "docs/rewards.md",
    "tests/helpers/fake_server.py",
    "tests/prompting/*",
    "tests/rewards/graders/*",
    "tests/rewards/test_llm_judge.py",
    "tests/rewards/test_verifiers.py",
    "tests/rewards/test_majority.py",
    "tests/rollout/test_openai.py",
    # Options and parameters for a column with gold answers; an alias for one version.
    "conf/optimize_prompt.yaml",
    "rlhf_lightning/cli/top_keys.py",
    "rlhf_lightning/world/evaluator.py",
    "tests/configs/test_row_columns.py",
    "tests/rewards/test_base.py",
    "tests/rewards/test_length.py",
)
_ANSWERS = "|".join(
    [
        # Names.
        r"\w*(gold|final|no|right|wrong|correct|numeric|boxed|extract\w*|check|parse|same|score|before|unreadable)_answers?\w*",
        r"answer_(tag|pattern|column|key|text)s?",
        # The answer of a data set, a solution, a quiz.
        r"(gold|final|correct|reference|expected|true|right|wrong|numeric|boxed|extracted|multiple-choice|single)"
        r" answers?",
        r"answers? (extraction|key|tag|column|sheet)s?",
        r"(questions?|exercises?|tests?|references?|problems?)(,| and| or| with) (\w+ )?answers?",
        r"(columns?|fields?|rows?) (\w+ )?(with|of|has|have|without) (\w+ )?answers?",
        r"(rows|questions) with(out)? answers?",
        # The answer of a server, a judge, a grader, a call.
        r"(server|judge|grader|endpoint|call|request|oracle|verifier|machine|nobody|never|who|user|person|people)s?('s)?"
        r"( \w+){0,2} answer(s|ed|ing)?",
        r"answer(s|ed)? (of|from|by) (the |a |an )?(server|judge|grader|endpoint|call|request|model that is asked)s?",
        r"answer(s|ed)? (a |the |every |with status |within )?(request|call|question|status|health)s?",
        r"is answered (with|within|by)",
        # What a prompt tells a model to do.
        r"(please|must|should|then|to|not|:|\.) answer (the|in|with|as|truthfully|questions?|what|only|yes|briefly)",
        r"do[ -]?not[ -]?answer",
        r"answer \w+ or \w+",
        r"answer (in one sentence|truthfully|untruthfully)",
    ]
)

WORDS = {
    "found": Word("the thing itself: matches, by_position, rows", name="found"),
    "own": Word("whose it is: local_groups, policy_log_probs, process_rows", name="own"),
    "mine": Word("local_rows, local, this process's share", name="mine", allow_in=("*hardening*",)),
    "theirs": Word("whose it is: trainer, reference, other", name="theirs"),
    "known": Word("the thing itself: finite, present, names, options", name="known"),
    "scored": Word(
        "what has the score: mask, groups, required_scores", name="scored", allow="ScoredGroup|scored_tokens"
    ),
    "place": Word(
        "one of: position, index, folder, process_share, column",
        name="places?",
        allow=r"\w*in_place|re_?place|_?to_place|place_labels",
    ),
    "further": Word("what it holds: extra_needs, more_rows", name="further"),
    "legal": Word("allowed", name="legal"),
    "beside": Word("what it holds: extra_columns, kind_columns", name="beside"),
    "said": Word(
        "reported, refused, written, stated; of a name: lines, messages, log, text",
        name="said",
        prose="said",
        allow=r"(he|she|user|assistant|they) (has |have )?said|what (the|a) (user|assistant|person) said",
        allow_in=("rlhf_lightning/prompting/revision_texts.py",),
    ),
    "anew": Word("from scratch, again", name="anew", prose="anew"),
    "go on": Word(
        "resume, continue",
        prose=r"(goes|go|going|went|gone) on(?! (to|the)\b)",
    ),
    "turned over": Word("with the gradient sign flipped; reversed", prose="turned over"),
    "answer": Word(
        "response (of a model); answer is for gold answers, servers and judges",
        name=r"answer(s|ed|er|ers|ing)?",
        prose=r"(un)?answer(s|ed|er|ers|ing)?",
        allow=_ANSWERS,
        allow_in=_ANSWERS_ARE_THE_SUBJECT,
    ),
}
#: A quick look: most texts have none of the words.
_ANY = re.compile("|".join(word.prose for word in WORDS.values() if word.prose).replace(" ", r"\s+"), re.IGNORECASE)
#: Docstrings begin with a verb or a noun.
OPENING = re.compile(r"\W*(What|How|Whether|Which|Who|Whose|Why)\b")
_OPENINGS = re.compile(rf"(\"\"\"|'''){OPENING.pattern}")
OPENING_INSTEAD = "begin with a verb or a noun: Return ..., Log-probs of ..."


@dataclass(frozen=True)
class Text:
    """A piece of a file.

    Attributes:
        line: of the file, where it begins.
        text: of the same lines as in the file.
        kind: ``name``, ``prose``, or ``docstring``, which is prose with an opening.
    """

    line: int
    text: str
    kind: str


def hits(path: str, pieces: Iterable[Text]) -> Iterator[tuple[int, str, str]]:
    """Line, word and suggestion of everything that the deny list refuses.

    Args:
        path: of the file in the project.
        pieces: of the file.
    """
    words = {key: word for key, word in WORDS.items() if not any(fnmatch(path, pattern) for pattern in word.allow_in)}
    of_prose = [word for word in words.values() if word.prose]
    for piece in pieces:
        if piece.kind == "name":
            for key in _refused_names(piece.text):
                if key in words:
                    yield piece.line, piece.text, words[key].instead
            continue
        if piece.kind == "docstring" and (opening := OPENING.match(piece.text)):
            yield piece.line, opening[1], OPENING_INSTEAD
        if not _ANY.search(piece.text):
            continue
        prose = _without_code(piece.text)
        for word in of_prose:
            for match in _refused_phrases(word, prose):
                yield piece.line + prose.count("\n", 0, match.start()), " ".join(match[0].split()), word.instead


@cache
def _refused_names(name: str) -> tuple[str, ...]:
    """Entries of the deny list that refuse a name."""
    parts = {part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)}
    return tuple(
        key
        for key, word in WORDS.items()
        if word.name and any(re.fullmatch(word.name, part) for part in parts) and not re.fullmatch(word.allow, name)
    )


def _refused_phrases(word: Word, prose: str) -> Iterator[re.Match[str]]:
    matches = list(_whole(word.prose).finditer(prose))
    allowed = [match.span() for match in _whole(word.allow).finditer(prose)] if matches else []
    for match in matches:
        if not any(start <= match.start() and match.end() <= end for start, end in allowed):
            yield match


@cache
def _whole(pattern: str) -> re.Pattern[str]:
    """Whole words in any case, with any white space between them."""
    return re.compile(rf"\b(?:{pattern})\b".replace(" ", r"\s+"), re.IGNORECASE)


def _without_code(text: str) -> str:
    """Prose with backticks, roles, links' targets and braces of formatted strings blank; lines stay."""
    for pattern in (r"``[^`]*``", r"`[^`]*`", r"(?<=\])\([^)\s]*\)", r"https?://\S+", r"\{[^{}]*\}", r"<[^<>\n]*>"):
        text = re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


# Python


def of_python(source: str, *, is_test: bool = False, start: int = 1) -> Iterator[Text]:
    """Names, docstrings, comments and, outside of tests, other strings of a Python source.

    Args:
        source: the text.
        is_test: strings that are no docstrings are data and are left out.
        start: line of the file that the source begins at.
    """
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    docstrings = {line for node in nodes if (line := _docstring(node)) is not None}
    for line, name in (named for node in nodes if (named := _name(node)) is not None):
        if is_test and name.startswith("test_"):
            yield Text(start + line - 1, name.replace("_", " "), "prose")
        else:
            yield Text(start + line - 1, name, "name")
    if not (_ANY.search(source) or _OPENINGS.search(source)):
        return
    for line, text, kind in _joined(_prose(source, docstrings)):
        if kind != "string" or not is_test:
            yield Text(start + line - 1, text, "docstring" if kind == "docstring" else "prose")


def _docstring(node: ast.AST) -> int | None:
    """Line of a node's docstring."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return first.lineno
    return None


def _name(node: ast.AST) -> tuple[int, str] | None:
    """Line and name that a node binds: what other libraries call their parts is not ours."""
    match node:
        case ast.Name(ctx=ast.Store()):
            return node.lineno, node.id
        case ast.Attribute(ctx=ast.Store()):
            return node.lineno, node.attr
        case ast.arg():
            return node.lineno, node.arg
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return node.lineno, node.name
        case ast.alias(asname=str(name)):
            return node.lineno, name
    return None


def _prose(source: str, docstrings: set[int]) -> Iterator[tuple[int, int, str, str]]:
    """First line, last line, text and kind of every string and comment, in order."""
    middle = getattr(tokenize, "FSTRING_MIDDLE", None)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line, last = token.start[0], token.end[0]
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|%)", token.string):
            yield line, last, token.string.lstrip("#:"), "comment"
        elif token.type == tokenize.STRING:
            text = re.sub(r"""^\w*('''|\"""|'|")|('''|\"""|'|")$""", "", token.string)
            yield line, last, text, "docstring" if line in docstrings else "string"
        elif token.type == middle:
            yield line, last, token.string, "string"


def _joined(parts: Iterable[tuple[int, int, str, str]]) -> Iterator[tuple[int, str, str]]:
    """Comments and strings that follow one another line by line as one text; strings without a space are data."""
    begin, end, text, kind = 0, 0, "", ""
    for line, last, more, of in parts:
        if of == "string" and not re.search(r"\s", more):
            continue
        if of == kind and kind != "docstring" and end <= line <= end + 1:
            text, end = text + "\n" * (line - end) + " " * (line == end) + more, last
            continue
        if kind:
            yield begin, text, kind
        begin, end, text, kind = line, last, more, of
    if kind:
        yield begin, text, kind


# Other files


def of_yaml(source: str) -> Iterator[Text]:
    """Keys, and comments, of which those on lines that follow one another are one text."""
    comments: list[tuple[int, int, str, str]] = []
    for number, line in enumerate(source.splitlines(), 1):
        if key := re.match(r"\s*(?:- )?(\w+):(\s|$)", line):
            yield Text(number, key[1], "name")
        if comment := re.search(r"(?:^|\s)#(.*)", line):
            comments.append((number, number, comment[1], "comment"))
    yield from (Text(line, text, "prose") for line, text, _ in _joined(comments))


def of_markdown(source: str, start: int = 1) -> Iterator[Text]:
    """Prose, and the Python of fenced blocks where it is whole.

    Args:
        source: the text.
        start: line of the file that the source begins at.
    """
    fence = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```[^\n]*$", re.MULTILINE | re.DOTALL)
    yield Text(start, fence.sub(lambda match: "\n" * match[0].count("\n"), source), "prose")
    for block in fence.finditer(source):
        if block[2] == "python":
            yield from _python_cell(block[3], start + source.count("\n", 0, block.start(3)))


def of_notebook(source: str) -> Iterator[Text]:
    """Cells of a notebook, on the lines of its file."""
    lines, at = source.splitlines(), 0
    for cell in json.loads(source)["cells"]:
        text = "".join(cell["source"])
        first = json.dumps(text.split("\n")[0], ensure_ascii=False)[1:-1]
        at = next((number for number in range(at, len(lines)) if f'"{first}' in lines[number]), at)
        yield from of_markdown(text, at + 1) if cell["cell_type"] == "markdown" else _python_cell(text, at + 1)


def _python_cell(source: str, start: int) -> Iterator[Text]:
    """Python of a page; what does not parse, such as a part of a file, is left out."""
    plain = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE)
    try:
        yield from list(of_python(plain, start=start))
    except SyntaxError:
        return


def of_file(path: Path) -> Iterator[Text]:
    """The pieces of a file, its name among them."""
    source = path.read_text(encoding="utf-8")
    is_test = "tests" in path.relative_to(ROOT).parts if path.is_relative_to(ROOT) else False
    if path.suffix == ".py":
        yield Text(1, path.stem, "name") if not is_test else Text(1, path.stem.replace("_", " "), "prose")
        yield from of_python(source, is_test=is_test)
    elif path.suffix in (".yaml", ".yml"):
        yield from of_yaml(source)
    elif path.suffix == ".ipynb":
        yield from of_notebook(source)
    else:
        yield from of_markdown(source)


def files(paths: Sequence[str]) -> Iterator[Path]:
    """Files of the project that are read: those tracked by git, below the paths where some are given."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    listed = subprocess.run([*command, *(str(Path(path).resolve()) for path in paths)], capture_output=True, check=True)
    for name in sorted(set(listed.stdout.decode().split("\0"))):
        path = ROOT / name
        if path.suffix in SUFFIXES and path.is_file() and path != Path(__file__).resolve():
            yield path


def main() -> int:
    """Print every hit; 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("paths", nargs="*", help="files or folders; none: every file of the project")
    count = 0
    for path in files(parser.parse_args().paths):
        name = path.relative_to(ROOT).as_posix()
        for line, word, instead in sorted(set(hits(name, of_file(path)))):
            print(f"{name}:{line}: {word} -> {instead}")  # noqa: T201
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
