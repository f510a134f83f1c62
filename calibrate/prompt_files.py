"""Rows of one column from a local text, JSON, CSV or Parquet file, each mistake told in one line.

Lines of text are read here, all other rows by `datasets`. Its errors are long and speak of its cache, and it guesses types from
the values, so what can be checked cheaply is checked here first. It then gets a plainly named copy of the file: it takes
`a[1].txt` for a pattern and skips hidden folders.
"""

import csv
import difflib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..profiles.errors import PromptError

KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_DEFAULT_COLUMNS = ("prompt", "caption", "text")


def check_file(path: Path) -> None:
    """Refuse what is no file of prompts by its name and size alone.

    Raises:
        PromptError: `path` is missing, a folder, empty, or of an unknown format.
    """
    kinds = ", ".join(KINDS)
    try:
        if path.is_dir():
            inside = sorted(child.name for child in path.iterdir() if child.suffix.lower() in KINDS)
            hint = f"pass a file in it: {', '.join(inside[:5])}" if inside else f"expected a file, one of {kinds}"
            raise PromptError(f"{path}: is a folder; {hint}")
        if not path.exists():
            raise PromptError(f"{path}: no such file; {_missing_hint(path)}")
        if path.suffix.lower() not in KINDS:
            raise PromptError(f"{path}: cannot tell the format of {path.suffix or path.name!r}; expected one of {kinds}")
        if path.is_file() and path.stat().st_size == 0:
            raise PromptError(f"{path}: is empty; expected prompts")
    except OSError as err:
        raise PromptError(f"{str(path)[:100]!r}: cannot be read ({err.strerror}); pass one of {kinds}") from err


def _missing_hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    names = sorted(child.name for child in path.parent.iterdir() if child.is_file())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"pass one of {', '.join(KINDS)}, or the id of a Hugging Face dataset"


def read_file(path: Path, column: str | None) -> list[str | None]:
    """One column of a local file, a value a row, None where the row has none; no network is used.

    Raises:
        PromptError: The content is binary, malformed or blank, or lacks a column of text.
    """
    kind = KINDS[path.suffix.lower()]
    if kind == "text":
        return _text_rows(path, column)
    import datasets

    with tempfile.TemporaryDirectory(prefix="toprovar-prompts-") as scratch, _quiet_datasets():
        copy = Path(scratch) / f"prompts.{kind}"
        options = _PREPARE[kind](path, column, copy)
        try:
            dataset = datasets.load_dataset(
                kind, data_files=str(copy), split="train", cache_dir=scratch, keep_in_memory=True, **options
            )
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as err:
            if "no data" in str(err):
                raise PromptError(f"{path}: holds no rows; expected prompts") from err
            raise PromptError(f"{path}: cannot be read as {kind} ({one_line(err)}); check the file") from err
        values = text_values(str(path), dataset, column)
    # CSV has no types: all fields come as text
    filled = [value for value in values if value]
    if kind == "csv" and filled and all(map(_is_number, filled)):
        raise PromptError(f"{path}: column {next(iter(options['usecols']))!r} holds numbers, expected text")
    return values


def _read_text(path: Path) -> str:
    """Content of a UTF-8 file without its byte order mark."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise PromptError(f"{path}: cannot be read ({err.strerror}); check its permissions") from err
    remedy = "save it as UTF-8 text"
    zero = data.find(b"\0")
    if zero >= 0:
        raise PromptError(f"{path}: is binary, not text: zero byte at offset {zero}; {remedy}")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as err:
        bad = data[err.start]
        raise PromptError(f"{path}: is not UTF-8 text: byte 0x{bad:02x} at offset {err.start}; {remedy}") from err
    if not text.strip():
        raise PromptError(f"{path}: holds only blank lines; expected prompts")
    return text


def _text_rows(path: Path, column: str | None) -> list[str | None]:
    """Lines of a text file, whose only column is `text`."""
    _pick_column(str(path), ["text"], column)
    return list(io.StringIO(_read_text(path), newline=None).read().rstrip("\n").split("\n"))


def _prepare_json(path: Path, column: str | None, copy: Path) -> dict[str, Any]:
    """Copy only the prompts: a type that varies in another column would stop the reader."""
    import datasets

    rows = _json_rows(path, _read_text(path))
    picked = _pick_column(str(path), list(dict.fromkeys(key for _, row in rows for key in row)), column)
    for where, row in rows:
        value = row.get(picked)
        if not isinstance(value, str | None):
            raise PromptError(f"{path}: {where}: column {picked!r} holds {type(value).__name__}, expected text")
        if value and not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise PromptError(f"{path}: {where}: column {picked!r} holds half a surrogate pair; write the character out")
    lines = (json.dumps({picked: row.get(picked)}, ensure_ascii=False) for _, row in rows)
    copy.write_bytes("\n".join(lines).encode())
    return {"features": datasets.Features({picked: datasets.Value("string")})}


def _json_rows(path: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a JSON array, a single object or JSON lines, each with where it stands; blank lines become empty rows."""
    try:
        whole = json.loads(text)
        items = [(f"item {n}", item) for n, item in enumerate(whole if isinstance(whole, list) else [whole], 1)]
    except json.JSONDecodeError as err:
        if text.lstrip().startswith("["):
            raise _malformed(path, err.lineno, err) from err
        items = []
        for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
            try:
                items.append((f"line {number}", json.loads(line) if line.strip() else {}))
            except json.JSONDecodeError as line_err:
                raise _malformed(path, number, line_err) from line_err
    for where, item in items:
        if not isinstance(item, dict | str):
            raise PromptError(f"{path}: {where}: expected an object or a string, got {type(item).__name__}")
    if not items:
        raise PromptError(f"{path}: holds no rows; expected objects with a prompt each")
    return [(where, {"text": item} if isinstance(item, str) else item) for where, item in items]


def _malformed(path: Path, line: int, err: json.JSONDecodeError) -> PromptError:
    return PromptError(f"{path}: line {line}: malformed JSON ({err.msg}); expected one object a line, or one array")


def _prepare_csv(path: Path, column: str | None, copy: Path) -> dict[str, Any]:
    """Check the table row by row: too long a row would silently shift all columns by one."""
    import datasets

    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(row for row in reader if row)
        picked = _pick_column(str(path), header, column)
        if header.count(picked) > 1:
            raise PromptError(f"{path}: column {picked!r} stands twice in the header; rename one")
        for row in reader:
            if len(row) > len(header):
                raise PromptError(
                    f"{path}: line {reader.line_num}: {len(row)} fields under a header of {len(header)}; "
                    'put prompts that hold a comma in "double quotes"'
                )
    except csv.Error as err:
        raise PromptError(f"{path}: line {reader.line_num}: malformed CSV ({err}); check its quotes") from err
    copy.write_bytes(text.lstrip("\r\n").encode())
    features = datasets.Features({picked: datasets.Value("string")})
    # "NA" and "null" are prompts like any other; a blank line counts as a blank prompt
    return {"features": features, "usecols": [picked], "keep_default_na": False, "skip_blank_lines": False}


def _prepare_parquet(path: Path, column: str | None, copy: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            head = file.read(4)
        shutil.copyfile(path, copy)
    except OSError as err:
        raise PromptError(f"{path}: cannot be read ({err.strerror}); check its permissions") from err
    if head != b"PAR1":
        raise PromptError(f"{path}: is not a Parquet file, it starts with {head!r}; give it the suffix of its format")
    return {}


_PREPARE = {"json": _prepare_json, "csv": _prepare_csv, "parquet": _prepare_parquet}


def _pick_column(source: str, columns: Sequence[str], column: str | None) -> str:
    wanted = _DEFAULT_COLUMNS if column is None else (column,)
    for name in wanted:
        if name in columns:
            return name
    missing = " or ".join(repr(name) for name in wanted)
    raise PromptError(f"{source}: no column {missing}; the columns are {list(columns)}, choose one with --column")


def text_values(source: str, dataset: Any, column: str | None) -> list[str | None]:
    """Values of a `datasets.Dataset`'s column of text, by default the first that is usually so called.

    Raises:
        PromptError: There is no such column, it does not hold text, or there are no rows.
    """
    picked = _pick_column(source, dataset.column_names, column)
    feature = dataset.features[picked]
    dtype = getattr(feature, "dtype", type(feature).__name__)
    if dtype not in ("string", "large_string", "string_view", "null"):
        raise PromptError(f"{source}: column {picked!r} holds {dtype}, expected text; choose another with --column")
    # the other columns are left behind before the rows are read: they may be images
    table = dataset.select_columns([picked]).with_format("arrow")[:]
    values: list[str | None] = table[picked].to_pylist()
    if not values:
        raise PromptError(f"{source}: holds no rows; expected prompts")
    return values


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No progress bars and no log lines: the caller tells the user in one line what went wrong."""
    import datasets

    level, hidden = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def one_line(err: BaseException) -> str:
    """The innermost cause in at most 200 characters: it says what happened, the outer ones only where."""
    while err.__cause__ is not None:
        err = err.__cause__
    return " ".join(str(err).split())[:200] or type(err).__name__
